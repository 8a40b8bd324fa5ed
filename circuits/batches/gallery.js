"use strict";
// Sorting by a column and showing only some rows; without this script the table is complete, in the prompts' order.
const body = document.querySelector("tbody");
const rows = [...body.rows];
const heads = [...document.querySelectorAll("th[data-sort]")];

function sortBy(head) {
  const upwards = head.ariaSort === "descending" || (head.ariaSort === null && head.dataset.sort === "text");
  for (const other of heads) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", upwards ? "ascending" : "descending");
  const of = (row) => row.cells[head.cellIndex].dataset.value;
  const compare = head.dataset.sort === "text" ? (a, b) => a.localeCompare(b) : (a, b) => a - b;
  const there = rows.filter((row) => of(row) !== "");
  const missing = rows.filter((row) => of(row) === "");  // they have no value to compare: last in both directions
  there.sort((a, b) => (upwards ? 1 : -1) * compare(of(a), of(b)));
  body.append(...there, ...missing);
}

function filter() {
  const words = document.getElementById("words").value.toLowerCase().split(/\s+/).filter(Boolean);
  const family = document.getElementById("family")?.value ?? "";
  const state = document.getElementById("state").value;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !(words.every((word) => text.includes(word)) && (!family || row.dataset.family === family)
      && (!state || row.dataset.state === state));
  }
  const shown = rows.filter((row) => !row.hidden).length;
  document.getElementById("count").textContent = shown < rows.length ? `${shown} of ${rows.length}` : "";
}

for (const head of heads) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  button.addEventListener("click", () => sortBy(head));
  head.append(button);
}
const form = document.getElementById("filters");
form.hidden = false;
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
