// Lets readers sort tables; without it the tables are all the same there. No less-than sign and no ampersand
// stand here, so that the page stays XML. Rows without a figure come last either way.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = Array.from(table.tHead.rows[0].cells);
  const valueOf = (row, column) => {
    const text = row.cells[column].textContent.trim();
    const number = Number.parseFloat(text);
    return { text, number, isMissing: text === "–" };
  };
  const compare = (one, other) =>
    Number.isNaN(one.number) || Number.isNaN(other.number)
      ? one.text.localeCompare(other.text, "en", { numeric: true })
      : one.number - other.number;
  const sort = (column) => {
    const isRising = heads[column].getAttribute("aria-sort") !== "ascending";
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[column].setAttribute("aria-sort", isRising ? "ascending" : "descending");
    const rows = Array.from(table.tBodies[0].rows, (row) => ({ row, value: valueOf(row, column) }));
    rows.sort((one, other) =>
      one.value.isMissing || other.value.isMissing
        ? one.value.isMissing - other.value.isMissing
        : (isRising ? 1 : -1) * compare(one.value, other.value));
    table.tBodies[0].append(...rows.map((found) => found.row));
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(column));
    head.append(button);
  });
}
