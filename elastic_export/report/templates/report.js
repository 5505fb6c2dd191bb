(() => {
  const table = document.getElementById("final");
  if (!table) return;
  const body = table.tBodies[0];
  // The header has two rows; a column is where its cell stands under both.
  const place = new Map();
  const taken = [[], []];
  [...table.tHead.rows].forEach((row, level) => {
    let column = 0;
    for (const cell of row.cells) {
      while (taken[level][column]) column += 1;
      place.set(cell, column);
      for (let i = 0; i < cell.colSpan; i += 1) {
        for (let j = 0; j < cell.rowSpan; j += 1) taken[level + j][column + i] = true;
      }
      column += cell.colSpan;
    }
  });
  const key = (row, column) => {
    const cell = row.cells[column];
    const raw = cell.dataset.sort ?? cell.textContent.trim();
    return raw !== "" && !Number.isNaN(Number(raw)) ? Number(raw) : raw;
  };
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b));
  };
  for (const head of table.querySelectorAll("th.sortable")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("th[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const column = place.get(head);
      const rows = [...body.rows];
      rows.sort((a, b) => (up ? 1 : -1) * compare(key(a, column), key(b, column)));
      body.append(...rows);
    });
  }
})();
