"use strict";

// The switch between light and dark. What the system prefers is not kept, so that the page goes
// on following it.
for (const button of document.querySelectorAll(".switch")) {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const show = () => button.setAttribute("aria-pressed", String(isDark()));
  const keep = (theme) => {
    try {
      if (theme) localStorage.setItem("pixel-deflection-theme", theme);
      else localStorage.removeItem("pixel-deflection-theme");
    } catch {
      // The choice holds for this page alone.
    }
  };
  button.addEventListener("click", () => {
    const dark = !isDark();
    if (dark === system.matches) delete root.dataset.theme;
    else root.dataset.theme = dark ? "dark" : "light";
    keep(root.dataset.theme);
    show();
  });
  system.addEventListener("change", show);
  show();
}

// The search: a card stays if it has all the words, in whatever it says.
for (const form of document.querySelectorAll(".search")) {
  const input = form.querySelector("input");
  const status = form.querySelector("[role=status]");
  const plain = (text) => text.toLowerCase().replace(/[\s=]+/g, " ");
  const cards = [...document.querySelectorAll("article")].map((card) => {
    const settings = card.querySelector(".settings");
    const hidden = settings ? plain(settings.textContent) : "";
    return { card, settings, text: plain(card.textContent), shown: plain(card.innerText) };
  });
  const search = () => {
    const words = plain(input.value).split(" ").filter(Boolean);
    const found = cards.filter(({ card, settings, text, shown }) => {
      const matches = words.every((word) => text.includes(word));
      card.hidden = !matches;
      if (settings) settings.open = matches && words.some((word) => !shown.includes(word));
      return matches;
    });
    for (const section of document.querySelectorAll("main section")) {
      section.hidden = !section.querySelector("article:not([hidden])");
    }
    const all = `${cards.length} notebooks`;
    if (words.length === 0) status.textContent = all;
    else status.textContent = found.length ? `${found.length} of ${all}` : `None of ${all}`;
  };
  input.addEventListener("input", search);
  form.addEventListener("submit", (event) => event.preventDefault());
  // A browser that goes back may have kept the words.
  if (input.value) search();
}

// Figures enlarge: one dialog, in which the arrow keys lead from figure to figure.
function addViewer(pictures) {
  const viewer = document.createElement("dialog");
  viewer.className = "viewer";
  viewer.setAttribute("aria-label", "Figure, enlarged");
  viewer.innerHTML =
    '<div class="tools"><button type="button" aria-label="Previous figure">←</button>' +
    '<span role="status"></span><button type="button" aria-label="Next figure">→</button>' +
    '<button type="button" autofocus>Close</button></div><img alt=""><p></p>';
  document.body.append(viewer);
  const [previous, next, close] = viewer.querySelectorAll("button");
  const image = viewer.querySelector("img");
  let at = 0;
  const show = (place) => {
    at = (place + pictures.length) % pictures.length;
    image.src = pictures[at].src;
    image.alt = pictures[at].alt;
    viewer.querySelector("p").textContent = pictures[at].alt;
    viewer.querySelector("[role=status]").textContent = `${at + 1} of ${pictures.length}`;
  };
  previous.addEventListener("click", () => show(at - 1));
  next.addEventListener("click", () => show(at + 1));
  previous.disabled = next.disabled = pictures.length < 2;
  close.addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => event.target === viewer && viewer.close());
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(at - 1);
    if (event.key === "ArrowRight") show(at + 1);
  });
  return (place) => {
    show(place);
    viewer.showModal();
  };
}

for (const image of document.querySelectorAll(".text_cell img")) {
  const picture = document.createElement("span");
  picture.className = "picture";
  image.replaceWith(picture);
  picture.append(image);
}
const pictures = [...document.querySelectorAll(".picture > img")];
if (pictures.length) {
  const enlarge = addViewer(pictures);
  pictures.forEach((image, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "enlarge";
    button.textContent = "⤢";
    button.setAttribute("aria-label", `Enlarge figure ${place + 1}`);
    button.title = "Enlarge";
    button.addEventListener("click", () => enlarge(place));
    image.after(button);
    // By the mouse anywhere on the picture; the focus comes back to its button.
    image.addEventListener("click", () => {
      button.focus();
      enlarge(place);
    });
  });
}

// Tables sort: ascending, descending, as they came. Cells that begin with a number are numbers.
const NUMBER = /^[-+−]?(\d+\.?\d*(e[-+]?\d+)?|inf)/i;

const EMPTY = new Set(["", "-", "–", "NaN", "None"]);
const NEXT = { none: "ascending", ascending: "descending", descending: "none" };

function valueOf(text) {
  return Number(NUMBER.exec(text)[0].replace("−", "-").replace(/inf/i, "Infinity"));
}

function ordered(rows, column, direction) {
  if (direction === "none") return rows;
  const text = (row) => row.cells[column].textContent.trim();
  const filled = rows.filter((row) => !EMPTY.has(text(row)));
  const compare = filled.every((row) => NUMBER.test(text(row)))
    ? (a, b) => valueOf(a) - valueOf(b) || 0
    : new Intl.Collator("en", { numeric: true }).compare;
  const sign = direction === "ascending" ? 1 : -1;
  filled.sort((a, b) => sign * compare(text(a), text(b)));
  return [...filled, ...rows.filter((row) => EMPTY.has(text(row)))];
}

function sortable(table) {
  const rows = [...(table.tBodies[0]?.rows ?? [])];
  const heads = [...(table.tHead?.rows[table.tHead.rows.length - 1]?.cells ?? [])];
  const plain = rows.every(
    (row) => row.cells.length === heads.length && [...row.cells].every((cell) => cell.rowSpan === 1),
  );
  if (rows.length < 2 || !plain) return;
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...head.childNodes);
    if (!button.textContent.trim()) button.setAttribute("aria-label", "Rows by name");
    head.append(button);
    button.addEventListener("click", () => {
      const direction = NEXT[head.getAttribute("aria-sort") ?? "none"];
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", direction);
      table.tBodies[0].append(...ordered(rows, column, direction));
    });
  });
}

document.querySelectorAll(".page table").forEach(sortable);

// An interval or a count is not torn apart at the end of a line.
function whole(text) {
  const span = document.createElement("span");
  span.className = "whole";
  span.append(text);
  return span;
}

for (const cell of document.querySelectorAll(".page td, .page th, .page th .sort")) {
  for (const node of [...cell.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE)) {
    const parts = node.data.split(/(\[[^\]]*\]|\(n = \d+\))/);
    node.replaceWith(...parts.map((part, i) => (i % 2 ? whole(part) : part)));
  }
}

// What scrolls sideways can be scrolled by the keyboard.
function reachable() {
  for (const box of document.querySelectorAll(".page pre, .output_subarea")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}
addEventListener("resize", reachable);
reachable();
