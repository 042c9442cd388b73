"use strict";
{
  // Everything that belongs to a block is marked together, wherever the pointer or the focus is.
  const marks = new Map();
  for (const part of document.querySelectorAll("[data-block]")) {
    const name = part.dataset.block;
    if (!marks.has(name)) marks.set(name, []);
    marks.get(name).push(part);
  }
  let lit = [];
  const light = (names) => {
    for (const name of lit) for (const part of marks.get(name) ?? []) part.classList.remove("on");
    lit = names;
    for (const name of lit) for (const part of marks.get(name) ?? []) part.classList.add("on");
  };
  const blockOf = (target) => target.closest?.("[data-block]")?.dataset.block;
  document.addEventListener("pointerover", (event) => {
    const name = blockOf(event.target);
    if (name !== undefined) light([name]);
    else if (!event.target.closest?.("#pairs")) light([]);
  });
  document.addEventListener("focusin", (event) => {
    const name = blockOf(event.target);
    light(name === undefined ? [] : [name]);
  });

  const table = document.querySelector("#layers");
  if (table) {
    const body = table.tBodies[0];
    const rows = [...body.querySelectorAll(".row")];
    const detail = (row) => document.getElementById(row.querySelector("button").getAttribute("aria-controls"));
    const number = (row, key) => (key in row.dataset ? Number(row.dataset[key]) : NaN);

    body.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (!row || (window.getSelection() ?? "").toString()) return;
      const button = row.querySelector("button"), open = button.getAttribute("aria-expanded") === "true";
      button.setAttribute("aria-expanded", String(!open));
      detail(row).hidden = open;
    });

    // A row's details move and vanish with it.
    for (const button of table.querySelectorAll("thead button")) {
      button.addEventListener("click", () => {
        const key = button.dataset.key, head = button.closest("th"), now = head.getAttribute("aria-sort");
        const down = key === "order" ? now === "ascending" : now !== "descending";
        for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        table.classList.toggle("sorted", key !== "order");
        const order = [...rows].sort((a, b) => {
          const whole = b.classList.contains("whole") - a.classList.contains("whole");
          const x = number(a, key), y = number(b, key), place = number(a, "order") - number(b, "order");
          if (whole) return whole;
          if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || place;
          return (down ? y - x : x - y) || place;
        });
        body.append(...order.flatMap((row) => [row, detail(row)]));
      });
    }

    const find = document.querySelector("#find"), shown = document.querySelector("#shown");
    find.addEventListener("input", () => {
      const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const row of rows) {
        const whole = row.classList.contains("whole"), name = row.dataset.block.toLowerCase();
        row.hidden = !whole && !words.every((word) => name.includes(word));
        detail(row).hidden = row.hidden || row.querySelector("button").getAttribute("aria-expanded") !== "true";
        count += !whole && !row.hidden;
      }
      const all = rows.filter((row) => !row.classList.contains("whole")).length;
      shown.textContent = words.length ? `${count} of ${all} layers` : "";
    });
  }

  const pairs = document.querySelector("#pairs");
  if (pairs) {
    const values = JSON.parse(document.querySelector("#coefficients").textContent);
    const picture = pairs.querySelector("svg"), size = Number(pairs.dataset.size), said = document.querySelector("#pair");
    const names = [...picture.querySelectorAll(".cross")].map((cross) => cross.dataset.block);
    picture.addEventListener("pointermove", (event) => {
      const box = picture.getBoundingClientRect();
      const column = Math.floor(((event.clientX - box.left) / box.width) * size);
      const row = Math.floor(((event.clientY - box.top) / box.height) * size);
      if (row < 0 || row >= size || column < 0 || column > row) return light([]);
      const value = values[(row * (row + 1)) / 2 + column];
      light(row === column ? [names[row]] : [names[row], names[column]]);
      const told = value < 0 ? "not known (a layer without curvature)" : (value / 100).toFixed(2);
      const plain = (name) => name.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
      const first = plain(names[row]);
      said.textContent = row === column ? first : `${first} with ${plain(names[column])}: ${told}`;
    });
  }
}
