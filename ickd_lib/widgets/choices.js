// A table of rows to choose from. The chosen rows, the filter and the order are stored in the block. They are sent to
// Python shortly after the last interaction, so that several quick clicks cause only one redrawing.
blocks.choices = (block, { send = () => {} }) => {
  const { title, columns, rows, fixed } = block;
  const chosen = (block.marked ??= new Set(block.chosen)); // shared by all views of the table
  let timer;
  const report = () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      const counted = shown().filter(({ key }) => chosen.has(key)).map(({ key }) => key);
      const key = JSON.stringify({ chosen: counted, filter: block.filter, sort: block.sort });
      send({ event: "choices", key });
    }, 250);
  };
  const lines = rows.map(({ key, cells }) => {
    const box = make("input", { type: "checkbox", data: { focus: key }, checked: chosen.has(key), tabIndex: -1,
      aria: { label: `choose ${key}` } });
    const [first, ...others] = cells;
    const row = make("tr", {}, !fixed && make("td", {}, box), make("th", { scope: "row" }, first),
      ...others.map((cell, i) => make("td", { className: columns[i + 1].number ? "ickd-numeric" : "" }, cell)));
    return { key, cells, box, row, text: cells.join(" ").toLowerCase() };
  });
  const all = make("input", { type: "checkbox", aria: { label: "choose all shown" } });
  const filter = make("input", { type: "search", data: { focus: "filter" }, value: block.filter,
    placeholder: "words that a row must contain" });
  const count = make("span", { className: "ickd-note", aria: { role: "status" } });
  const heads = columns.map(({ name, tip, number }, at) => {
    const onclick = () => {
      block.sort = [at, block.sort[0] === at && !block.sort[1]];
      arrange();
      report();
    };
    const className = number ? "ickd-numeric" : "";
    return make("th", { scope: "col", className }, make("button", { type: "button", onclick, title: tip }, name));
  });
  const body = make("tbody");
  const shown = () => lines.filter(({ row }) => !row.hidden);
  const mark = () => {
    const some = shown(), here = some.filter(({ box }) => box.checked).length;
    for (const { row, box } of lines) row.classList.toggle("ickd-chosen", box.checked);
    all.checked = here > 0 && here === some.length;
    all.indeterminate = here > 0 && here < some.length;
    const left = here < chosen.size ? ` (${chosen.size - here} more are hidden by the filter and do not count)` : "";
    count.textContent = `${fixed ? "" : `${here} chosen${left}, `}${some.length} of ${rows.length} shown`;
  };
  // Only one box can be reached with Tab; the arrow keys move between boxes.
  const reach = (line) => lines.forEach((one) => (one.box.tabIndex = one === line ? 0 : -1));
  const sift = () => {
    const words = block.filter.toLowerCase().split(/\s+/);
    for (const { row, text } of lines) row.hidden = !words.every((word) => text.includes(word));
    reach(shown()[0]);
    mark();
  };
  const arrange = () => {
    const [at, down] = block.sort;
    const value = ({ cells }) => (columns[at].number ? parseFloat(cells[at].replace(/,/g, "")) : cells[at]);
    lines.sort((one, other) => {
      const [a, b] = [value(one), value(other)];
      // Empty cells are last in both directions.
      const empty = (Number.isNaN(a) || a === "") - (Number.isNaN(b) || b === "");
      const order = columns[at].number ? a - b || 0 : a.localeCompare(b, undefined, { numeric: true });
      return empty || (down ? -1 : 1) * order;
    });
    heads.forEach((head, i) => head.setAttribute("aria-sort", i !== at ? "none" : down ? "descending" : "ascending"));
    body.append(...lines.map(({ row }) => row));
    reach(shown()[0]);
  };
  const tick = ({ key, box }, checked) => {
    box.checked = checked;
    checked ? chosen.add(key) : chosen.delete(key);
  };
  filter.oninput = () => {
    block.filter = filter.value;
    sift();
    report();
  };
  all.onchange = () => {
    shown().forEach((line) => tick(line, all.checked));
    mark();
    report();
  };
  body.onclick = ({ target }) => {
    if (fixed) return;
    const line = lines.find(({ row }) => row.contains(target));
    if (!line) return;
    tick(line, target === line.box ? line.box.checked : !line.box.checked);
    reach(line);
    mark();
    report();
  };
  body.onkeydown = (event) => {
    const some = shown(), at = some.findIndex(({ box }) => box === event.target);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -some.length, End: some.length };
    if (at < 0 || !(event.key in steps)) return;
    event.preventDefault();
    const line = some[Math.min(some.length - 1, Math.max(0, at + steps[event.key]))];
    reach(line);
    line.box.focus();
  };
  const properties = { className: "ickd-choices", data: { lmSuppressShortcuts: "true" }, aria: { label: title } };
  const root = make("section", properties,
    make("div", { className: "ickd-row" }, make("label", {}, make("span", explained(block.tip), "filter"), " ", filter), count),
    make("div", fixed
      ? { className: "ickd-scroll ickd-fixed", tabIndex: 0, aria: { role: "group", label: title } }
      : { className: "ickd-scroll" }, make("table", {},
      make("thead", {}, make("tr", {}, !fixed && make("th", {}, all), ...heads)), body)));
  sift();
  arrange();
  return root;
};

