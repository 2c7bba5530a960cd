"use strict";
// Without this the page has everything but sorting, the switch of themes, and folded parts opened for printing.
const valueOf = (row, column) => {
  const cell = row.cells[column];
  return cell.dataset.key === undefined ? cell.textContent.trim() : Number(cell.dataset.key);
};

const compare = (one, other) => {
  if (typeof one === "number" && typeof other === "number") return one - other;
  if (typeof one !== typeof other) return typeof one === "number" ? -1 : 1;
  return one.localeCompare(other, "en", { numeric: true });
};

const sortBy = (table, column) => {
  const heads = [...table.tHead.rows[0].cells];
  const falling = heads[column].getAttribute("aria-sort") === "ascending";
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", falling ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => (falling ? -1 : 1) * compare(valueOf(a, column), valueOf(b, column)));
  table.tBodies[0].append(...rows);
};

for (const table of document.querySelectorAll("table")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (head.textContent.trim() === "" || table.tBodies[0].rows.length < 2) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sortBy(table, column));
    head.append(button);
  });
}

// A table that is wider than its place is scrolled with the arrow keys, so it must take the focus.
const reach = () => {
  for (const place of document.querySelectorAll(".scroll")) {
    const wide = place.scrollWidth > place.clientWidth;
    place.toggleAttribute("data-wide", wide);
    if (wide) {
      place.tabIndex = 0;
      place.setAttribute("role", "region");
      place.setAttribute("aria-label", place.dataset.label);
    } else {
      ["tabindex", "role", "aria-label"].forEach((name) => place.removeAttribute(name));
    }
  }
};
addEventListener("resize", reach);
document.addEventListener("toggle", reach, true);
reach();

const themes = { "": "as the system", light: "light", dark: "dark" };
const button = document.getElementById("theme");
button.hidden = false;
button.addEventListener("click", () => {
  const names = Object.keys(themes);
  const root = document.documentElement;
  const next = names[(names.indexOf(root.dataset.theme || "") + 1) % names.length];
  root.dataset.theme = next;
  button.textContent = `Theme: ${themes[next]}`;
});

addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
