// The lists of the page: videos, objects, spans to review, keys.

import { colourOf, css } from "./masks.js";

export const $ = (id) => document.getElementById(id);

/** Make an element; its name may have classes after dots, as in "p.muted". */
export function make(name, properties = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = Object.assign(document.createElement(tag), properties);
  element.classList.add(...classes);
  element.append(...children);
  return element;
}

export const counted = (count, word) =>
  `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

const STATUS = {
  changed: "to be masked again", missing: "not masked yet", failed: "failed", done: "",
};

function about(video, review) {
  const parts = [];
  if (video.clicks) parts.push(counted(video.clicks, "click"), counted(video.objects, "object"));
  else parts.push("no clicks yet");
  if (review) {
    const open = video.spans.filter((span) => !span.answer).length;
    if (open) parts.push(`${open.toLocaleString("en")} to review`);
    if (STATUS[video.status]) parts.push(STATUS[video.status]);
  }
  return parts.join(" · ");
}

export function showVideos(project, chosen, filter, open) {
  const wanted = project.videos.filter((v) => v.id.toLowerCase().includes(filter.toLowerCase()));
  const clicked = project.videos.filter((video) => video.clicks).length;
  $("video-count").textContent = `${clicked} of ${project.videos.length} with clicks`;
  sync($("videos"), wanted.map((video) => ({
    key: video.id, current: video.id === chosen, text: about(video, project.review),
    clicked: video.clicks > 0, faulty: video.faults.length > 0,
  })), ({ key: id }) => {
    const picture = make("img", { alt: "" });
    picture.dataset.id = id;
    seen.observe(picture);
    return make("li", {}, make("button.video", { title: id, onclick: () => open(id) }, picture,
      make("span.name", { textContent: id }), make("span.about")));
  }, (item, { current, text, clicked, faulty }) => {
    const button = item.firstChild;
    button.lastChild.textContent = text;
    mark(button, current);
    button.classList.toggle("clicked", clicked);
    button.classList.toggle("faulty", faulty);
  });
}

/**
 * Update a list to show items [{key, ...}]; create(item) makes an element, update(element, item)
 * updates it. An element stays as long as an item has its key, so that an element that is pressed,
 * typed into or focused is not replaced.
 */
function sync(list, items, create, update) {
  const before = new Map([...list.children].map((element) => [element.dataset.key, element]));
  const after = items.map((item) => {
    const key = String(item.key), content = JSON.stringify(item);
    const element = before.get(key) ?? create(item);
    before.delete(key);
    element.dataset.key = key;
    if (element.content !== content) update(element, item);
    element.content = content;
    return element;
  });
  for (const element of before.values()) element.remove();
  let place = list.firstChild;
  for (const element of after) {
    if (element === place) place = place.nextSibling;
    else list.insertBefore(element, place);
  }
}

function mark(element, current) {
  if (current) element.setAttribute("aria-current", "true");
  else element.removeAttribute("aria-current");
}

// Thumbnails are loaded one after another when they become visible, so that frames do not wait.
let loading = Promise.resolve();
const seen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    loading = loading.then(() => load(target));
  }
});

async function load(picture) {
  if (!picture.isConnected) return seen.observe(picture);
  picture.src = `/api/thumbnail?${new URLSearchParams({ id: picture.dataset.id })}`;
  await picture.decode().catch(() => picture.classList.add("broken"));
}

/** objects: [{object, name, points, note}] */
export function showObjects(objects, active, { choose, rename }) {
  sync($("objects"), objects.map(({ object, name, points, note }, place) => ({
    key: object, current: object === active, name, digit: place < 9 ? place + 1 : "",
    text: [counted(points, "click"), note].filter(Boolean).join(" · "),
  })), ({ key: object }) => {
    const label = make("input.name", {
      placeholder: `object ${object}`, ariaLabel: `Name of object ${object}`,
      onchange: (event) => rename(object, event.target.value.trim()),
      onfocus: () => choose(object),
    });
    label.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === "Escape") event.target.blur();
      event.stopPropagation();
    });
    const swatch = make("i.swatch");
    swatch.style.background = css(colourOf(object));
    // The server may refuse the name that was typed: show the saved one after the next update.
    label.addEventListener("blur", () => { item.content = null; });
    const item = make("li.object", { onclick: () => choose(object) },
      make("kbd"), swatch, label, make("span.about"));
    item.dataset.object = object;
    return item;
  }, (item, { current, name, digit, text }) => {
    const [key, , label, about] = item.children;
    key.textContent = digit;
    if (label !== document.activeElement) label.value = name; // a person may be typing in it
    about.textContent = text;
    mark(item, current);
  });
}

export function showSpans(spans, chosen, names, open) {
  const left = spans.filter((span) => !span.answer).length;
  $("span-count").textContent = `${left} of ${spans.length} left`;
  sync($("spans"), spans.map((span, place) => {
    const frames = span.first_frame === span.last_frame
      ? `${span.first_frame}` : `${span.first_frame}–${span.last_frame}`;
    return {
      key: [span.video_id, span.object_id, span.first_frame, span.reason].join("/"),
      place, current: place === chosen, name: names(span), answered: Boolean(span.answer),
      text: `${span.answer || span.reason} · ${frames}`, object: span.object_id, reason: span.reason,
    };
  }), ({ object, reason }) => {
    const swatch = make("i.swatch");
    swatch.style.background = css(colourOf(object));
    const parts = [swatch, make("span.name"), make("span.about")];
    return make("li", {}, make(`button.span.${reason}`, {}, ...parts));
  }, (item, { place, current, name, answered, text }) => {
    const button = item.firstChild, [, title, about] = button.children;
    button.onclick = () => open(place);
    title.textContent = name;
    about.textContent = text;
    button.classList.toggle("answered", answered);
    mark(button, current);
  });
}

export function showKeys(groups) {
  $("keys").replaceChildren(...groups.map(([title, keys]) => make("section", {},
    make("h3", { textContent: title }),
    make("dl", {}, ...keys.flatMap(([key, description]) => [
      make("dt", {}, ...key.split(" / ").map((one) => make("kbd", { textContent: one }))),
      make("dd", { textContent: description }),
    ])))));
}
