// What each key does; the help shows the same table.

/** [group, [[keys as shown, what it does, keys as events have them, action], ...]] */
export const KEYS = [
  ["Clicking", [
    ["Click", "on the object"],
    ["Right click / Alt + click", "not on the object"],
    ["Drag", "a box; a point or a box's corner is moved by it"],
    ["Del", "delete what was clicked last", ["Delete", "Backspace"], "remove"],
    ["Ctrl + Z", "undo", ["ctrl+z"], "undo"],
    ["Ctrl + Shift + Z", "redo", ["ctrl+shift+z", "ctrl+y"], "redo"],
  ]],
  ["Objects", [
    ["N", "new object", ["n"], "newObject"],
    ["1 / … / 9", "choose an object", ["1", "2", "3", "4", "5", "6", "7", "8", "9"], "choose"],
    ["O", "next object", ["o"], "nextObject"],
    ["R", "name it", ["r"], "rename"],
    ["X", "not to be seen from this frame on", ["x"], "absent"],
    ["E", "not asked for from this frame on", ["e"], "end"],
  ]],
  ["Time", [
    ["← / →", "a frame back, forward", ["ArrowLeft", "ArrowRight"], "step"],
    ["Shift + ← / →", "ten frames", ["shift+ArrowLeft", "shift+ArrowRight"], "step"],
    [", / .", "clicked frame before, after", [",", "."], "prompted"],
    ["Home / End", "first, last frame", ["Home", "End"], "edge"],
    ["G", "go to a frame by number", ["g"], "goto"],
    ["Space", "play", [" "], "play"],
    ["T", "track a few seconds from here", ["t"], "track"],
    ["Esc", "stop tracking", ["Escape"], "escape"],
  ]],
  ["View", [
    ["Wheel / + / -", "zoom", ["+", "=", "-"], "zoom"],
    ["0", "fit the window", ["0"], "fit"],
    ["Z", "a screen pixel for every pixel", ["z"], "actual"],
    ["Ctrl + drag", "move the picture; also the middle button"],
    ["M", "hide and show masks", ["m"], "masks"],
    ["Page ↑ / Page ↓", "video before, after", ["PageUp", "PageDown"], "video"],
    ["/", "filter videos", ["/"], "filter"],
    ["?", "this list", ["?"], "help"],
  ]],
  ["Review", [
    ["[ / ]", "doubtful span before, after", ["[", "]"], "span"],
    ["A", "accept it: the masks are right", ["a"], "accept"],
  ]],
];

const ACTIONS = new Map(
  KEYS.flatMap(([, keys]) => keys)
    .filter((key) => key[2])
    .flatMap(([, , events, action]) => events.map((event) => [event, action])),
);

/** Call actions[name](key) for keys that are not typed into a field. */
export function listen(actions) {
  addEventListener("keydown", (event) => {
    if (event.target.matches("input") || event.altKey) return;
    const ctrl = event.ctrlKey || event.metaKey ? "ctrl+" : "";
    const shift = event.shiftKey && (ctrl || event.key.startsWith("Arrow")) ? "shift+" : "";
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const action = ACTIONS.get(ctrl + shift + key);
    const button = event.target.matches("button") && event.key === " ";
    if (!action || button || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    actions[action](key, Boolean(shift));
  });
}
