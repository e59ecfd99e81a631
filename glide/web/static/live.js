// Keeps the page up to date: fetches it again and replaces its main part. Without JavaScript, reload the page.
"use strict";

const EVERY = 2500; // milliseconds
let lost = null;
let pressed = false;

// A click needs its element from the press to the release.
addEventListener("pointerdown", () => { pressed = true; });
for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => { pressed = false; });

function report(text) {
  const state = document.getElementById("state");
  if (state.textContent !== text) state.textContent = text; // screen readers read each change aloud
}

function swap(text) {
  const fresh = new DOMParser().parseFromString(text, "text/html");
  const now = document.getElementById("content");
  const next = fresh.getElementById("content");
  if (!next) return;
  for (const open of now.querySelectorAll("details[open][id]")) {
    next.querySelector(`#${CSS.escape(open.id)}`)?.setAttribute("open", "");
  }
  const scrolled = [...now.querySelectorAll(".box[id], details[id] pre")].map((box) => [place(box), box.scrollLeft, box.scrollTop]);
  const focused = now.contains(document.activeElement) ? place(document.activeElement) : null;
  const top = window.scrollY;
  now.replaceChildren(...next.childNodes);
  document.title = fresh.title;
  for (const [where, left, down] of scrolled) {
    const box = where && now.querySelector(where);
    if (box) box.scrollTo(left, down);
  }
  if (focused) now.querySelector(focused)?.focus({ preventScroll: true });
  window.scrollTo(window.scrollX, top);
}

// Returns a selector that finds the same element in another version of the page.
function place(element) {
  const href = element.getAttribute("href");
  if (href) return `a[href="${CSS.escape(href)}"]`;
  const named = element.closest("[id]");
  if (!named || named.id === "content") return null;
  return `#${CSS.escape(named.id)}` + (named === element ? "" : ` ${element.localName}`);
}

async function refresh() {
  const selection = document.getSelection();
  const reading = selection && !selection.isCollapsed; // do not replace text that the user has selected
  if (!document.hidden && !reading) {
    try {
      const answer = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(10000) });
      if (!answer.ok && answer.status !== 404) throw new Error(answer.statusText); // 404: a run that has ended
      const text = await answer.text();
      if (!pressed) swap(text);
      lost = null;
      report("");
    } catch {
      lost ??= new Date();
      report(`glide web is not reachable since ${lost.toLocaleTimeString()}. This page shows older data.`);
    }
  }
  setTimeout(refresh, EVERY);
}

setTimeout(refresh, EVERY);
