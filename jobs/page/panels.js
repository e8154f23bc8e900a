// Lists beside the frame: videos, objects, spans to review, keys.

import { colourOf, css } from "./masks.js";

export const $ = (id) => document.getElementById(id);

/** An element: its classes after dots in the name, then properties, then children. */
export function make(name, properties = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = Object.assign(document.createElement(tag), properties);
  element.classList.add(...classes);
  element.append(...children);
  return element;
}

export const counted = (count, word) =>
  `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

const STANDING = {
  changed: "will be masked anew", missing: "not masked yet", failed: "failed", done: "",
};

function about(video, review) {
  const parts = [];
  if (video.clicks) parts.push(counted(video.clicks, "click"), counted(video.objects, "object"));
  else parts.push("nothing clicked yet");
  if (review) {
    const open = video.spans.filter((span) => !span.answer).length;
    if (open) parts.push(`${open.toLocaleString("en")} to review`);
    if (STANDING[video.standing]) parts.push(STANDING[video.standing]);
  }
  return parts.join(" · ");
}

export function showVideos(project, chosen, filter, open) {
  const wanted = project.videos.filter((v) => v.id.toLowerCase().includes(filter.toLowerCase()));
  const clicked = project.videos.filter((video) => video.clicks).length;
  $("video-count").textContent = `${clicked} of ${project.videos.length} clicked`;
  const items = wanted.map((video) => {
    const picture = make("img", { alt: "" });
    picture.dataset.id = video.id;
    const choose = () => open(video.id);
    const button = make("button.video", { title: video.id, onclick: choose }, picture,
      make("span.name", { textContent: video.id }),
      make("span.about", { textContent: about(video, project.review) }));
    if (video.id === chosen) button.setAttribute("aria-current", "true");
    button.classList.toggle("clicked", video.clicks > 0);
    button.classList.toggle("faulty", video.faults.length > 0);
    return make("li", {}, button);
  });
  // Thumbnails that are there already are kept: to make them anew would flicker.
  const list = $("videos");
  const before = new Map([...list.querySelectorAll("button")].map((b) => [b.title, b.firstChild]));
  for (const item of items) {
    const button = item.firstChild, picture = before.get(button.title);
    if (picture) button.replaceChild(picture, button.firstChild);
    else seen.observe(button.firstChild);
  }
  list.replaceChildren(...items);
}

// Thumbnails one after another, as they come into sight: frames must not wait behind them.
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
export function showObjects(objects, active, { choose, rename, left }) {
  if ($("objects").contains(document.activeElement)) return; // a name is being typed
  $("objects").replaceChildren(...objects.map(({ object, name, points, note }, place) => {
    const label = make("input.name", {
      value: name, placeholder: `object ${object}`, ariaLabel: `Name of object ${object}`,
      onchange: (event) => rename(object, event.target.value.trim()),
      onfocus: () => choose(object), onblur: left,
    });
    label.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === "Escape") event.target.blur();
      event.stopPropagation();
    });
    const swatch = make("i.swatch");
    swatch.style.background = css(colourOf(object));
    const item = make("li.object", { onclick: () => choose(object) },
      make("kbd", { textContent: place < 9 ? place + 1 : "" }), swatch, label,
      make("span.about", { textContent: [counted(points, "click"), note].filter(Boolean).join(" · ") }));
    if (object === active) item.setAttribute("aria-current", "true");
    item.dataset.object = object;
    return item;
  }));
}

export function showSpans(spans, chosen, names, open) {
  const left = spans.filter((span) => !span.answer).length;
  $("span-count").textContent = `${left} of ${spans.length} left`;
  $("spans").replaceChildren(...spans.map((span, place) => {
    const frames = span.first_frame === span.last_frame
      ? `${span.first_frame}` : `${span.first_frame}–${span.last_frame}`;
    const swatch = make("i.swatch");
    swatch.style.background = css(colourOf(span.object_id));
    const button = make(`button.span.${span.reason}`, { onclick: () => open(place) }, swatch,
      make("span.name", { textContent: names(span) }),
      make("span.about", { textContent: `${span.answer || span.reason} · ${frames}` }));
    button.classList.toggle("answered", Boolean(span.answer));
    if (place === chosen) button.setAttribute("aria-current", "true");
    return make("li", {}, button);
  }));
}

export function showKeys(groups) {
  $("keys").replaceChildren(...groups.map(([title, keys]) => make("section", {},
    make("h3", { textContent: title }),
    make("dl", {}, ...keys.flatMap(([key, does]) => [
      make("dt", {}, ...key.split(" / ").map((one) => make("kbd", { textContent: one }))),
      make("dd", { textContent: does }),
    ])))));
}
