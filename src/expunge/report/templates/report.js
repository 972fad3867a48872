"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const value = (row) => { const v = row.cells[column].dataset.sort; return v === "" ? Infinity : Number(v); };
      const rows = [...table.tBodies[0].rows].sort((a, b) => (ascending ? 1 : -1) * (value(a) - value(b)));
      table.tBodies[0].append(...rows);
    });
  });
}
