"use strict";

// Where a page is served, what the search finds is shown with its lines; from the file system
// another page's text cannot be read.
if (typeof DOCUMENTATION_OPTIONS !== "undefined" && location.protocol !== "file:") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = true;
}

// Printed, a page is light whatever it is on the screen.
const { dataset } = document.documentElement;
let onScreen;
matchMedia("print").addEventListener("change", ({ matches }) => {
  if (matches) onScreen = dataset.theme;
  dataset.theme = matches ? "light" : onScreen;
});

// Figures enlarge, in a dialog in which the arrow keys lead on; without a script, as files.
function viewer(figures) {
  const dialog = document.createElement("dialog");
  dialog.className = "viewer";
  dialog.setAttribute("aria-label", "Figure, enlarged");
  dialog.innerHTML =
    '<form method="dialog"><button type="button" aria-label="Previous figure">←</button>' +
    '<span role="status"></span><button type="button" aria-label="Next figure">→</button>' +
    '<button autofocus>Close</button></form><div tabindex="0"><img class="dark-light"></div><p></p>';
  document.body.append(dialog);
  const image = dialog.querySelector("img");
  let at = 0;
  const show = (place) => {
    at = (place + figures.length) % figures.length;
    image.src = figures[at].href;
    image.alt = dialog.querySelector("p").textContent = figures[at].querySelector("img").alt;
    dialog.querySelector("span").textContent = `${at + 1} of ${figures.length}`;
  };
  const [previous, next] = dialog.querySelectorAll("[type=button]");
  previous.addEventListener("click", () => show(at - 1));
  next.addEventListener("click", () => show(at + 1));
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(at - 1);
    if (event.key === "ArrowRight") show(at + 1);
  });
  figures.forEach((figure, place) => {
    figure.addEventListener("click", (event) => {
      event.preventDefault();
      show(place);
      dialog.showModal();
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
  if (rows.length < 2 || !rows.every((row) => row.cells.length === heads.length)) return;
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

addEventListener("DOMContentLoaded", () => {
  viewer([...document.querySelectorAll("a.picture")]);
  document.querySelectorAll("article table").forEach(sortable);
});
