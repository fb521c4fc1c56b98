"use strict";
for (const section of document.querySelectorAll(".pair")) {
  const field = section.querySelector("input"), kind = section.querySelector("select");
  if (!field) continue;
  const said = section.querySelector("output");
  const rows = Array.from(section.querySelectorAll(".rows > li"), (row) => ({ row, text: row.textContent.toLowerCase() }));
  const show = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const { row, text } of rows) {
      row.hidden = (kind.value && row.dataset.kind !== kind.value) || !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    said.textContent = `${shown} of ${rows.length} shown`;
  };
  field.addEventListener("input", show);
  kind.addEventListener("change", show);
  show();
}
