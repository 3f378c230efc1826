"use strict";
// Tables are sorted by the column whose head is pressed; data-v holds a number where the text is none.
for (const head of document.querySelectorAll("table.sortable thead th")) {
  head.querySelector("button").addEventListener("click", () => {
    const body = head.closest("table").tBodies[0], at = head.cellIndex;
    const value = row => row.cells[at].dataset.v ?? row.cells[at].textContent.trim();
    const known = text => text !== "" && text !== "–";
    const number = text => Number(text.replace("−", "-").replace(/[%,±]/g, ""));
    const down = head.ariaSort ? head.ariaSort === "ascending" : head.classList.contains("n");
    const rows = [...body.rows], numeric = rows.every(row => !known(value(row)) || !Number.isNaN(number(value(row))));
    rows.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (!known(x) || !known(y)) return known(y) - known(x);
      return (numeric ? number(x) - number(y) : x.localeCompare(y, "en", { numeric: true })) * (down ? -1 : 1);
    });
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...rows);
    body.parentNode.classList.add("sorted");
  });
}
// What stands under the pointer: the words of a shape, or the value of a cell.
const tip = document.getElementById("tip");
const grids = new Map([...document.querySelectorAll("figure.grid")].map(
  figure => [figure.querySelector("image"), JSON.parse(figure.querySelector("script").textContent)]));
function words(event) {
  const shape = event.target.closest?.("[data-tip]"), grid = grids.get(event.target);
  if (shape) return shape.dataset.tip;
  if (!grid) return "";
  const box = event.target.getBoundingClientRect(), columns = grid.columns ?? grid.rows;
  const row = Math.min(Math.floor((event.clientY - box.top) / box.height * grid.rows.length), grid.rows.length - 1);
  const column = Math.min(Math.floor((event.clientX - box.left) / box.width * columns.length), columns.length - 1);
  const value = grid.values[row]?.[column];
  return value ? `${grid.rows[row]} ${grid.between} ${columns[column]}\n${value}` : "";
}
for (const kind of ["pointermove", "pointerdown"]) {
  document.addEventListener(kind, event => {
    tip.textContent = words(event);
    tip.hidden = !tip.textContent;
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, document.documentElement.clientWidth - width - 8))}px`;
    tip.style.top = `${event.clientY + 18 + height > innerHeight ? event.clientY - height - 12 : event.clientY + 18}px`;
  });
}
document.addEventListener("scroll", () => { tip.hidden = true; }, true);
