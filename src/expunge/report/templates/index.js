// Filters: what is chosen stands in the address (index.html#data=mnist&method=scrub), so that a view can be sent.
const form = document.querySelector(".filters");
const rows = [...document.querySelectorAll("table.results tbody tr")];
const chosen = () => [...form.elements].filter((e) => e.name && e.value).map((e) => [e.name, e.value]);
function show() {
  const wanted = chosen();
  let count = 0;
  for (const row of rows) {
    row.hidden = !wanted.every(([key, value]) => row.dataset[key] === value);
    count += !row.hidden;
  }
  const heads = [...document.querySelector("table.results").tHead.rows[0].cells];
  heads.forEach((head, at) => {
    if (!head.querySelector("button")) return;
    const empty = rows.every((row) => row.hidden || row.cells[at].dataset.sort === ""); // no number among what is shown
    for (const line of [head.parentElement, ...rows]) line.cells[at].hidden = empty;
  });
  form.querySelector("output").textContent = `${count} of ${rows.length} rows`;
}
function read() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const select of form.elements) if (select.name) select.value = [...select.options].some((o) => o.value === given.get(select.name)) ? given.get(select.name) : "";
  show();
}
function write() {
  history.replaceState(null, "", `#${new URLSearchParams(chosen())}`);
  show();
}
form.addEventListener("change", write);
form.addEventListener("reset", () => setTimeout(write));
form.addEventListener("submit", (event) => event.preventDefault());
window.addEventListener("hashchange", read);
read();
