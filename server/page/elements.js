// Small things that several modules show.

/** A copy of the element in a template of the page. */
export const template = (id) =>
  document.getElementById(id).content.firstElementChild.cloneNode(true);

/** Copies of all the elements in it. */
export const templates = (id) => [...document.getElementById(id).content.cloneNode(true).children];

export const percent = (share) => `${(100 * share).toFixed(1)} %`;

/** How much each of a few numbers spoke for the answer, as bars to the right, or against it. */
export function attributionTable(attributions, names) {
  const table = template("attributions");
  const most = Math.max(...attributions.map(Math.abs)) || 1;
  const rows = attributions.map((value, i) => {
    const row = template("attribution");
    row.querySelector("th").textContent = names[i];
    row.querySelector("i").style.setProperty("--share", value / most);
    row.querySelector("i").classList.toggle("against", value < 0);
    row.querySelector("span").textContent = value.toPrecision(2);
    return row;
  });
  table.querySelector("tbody").append(...rows);
  return table;
}
