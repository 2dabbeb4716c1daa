// The blocks of a View as elements of the page; view.py describes them. The files blocks.js, choices.js and view.js are
// one script, in this order.

function make(tag, properties = {}, ...children) {
  const { data = {}, aria = {}, style = {}, ...rest } = properties;
  const element = Object.assign(document.createElement(tag), rest);
  Object.assign(element.dataset, data);
  for (const [name, value] of Object.entries(aria)) {
    element.setAttribute(name === "role" ? name : `aria-${name}`, value);
  }
  for (const [name, value] of Object.entries(style)) element.style.setProperty(name, value);
  element.append(...children.filter((child) => child !== undefined && child !== null && child !== false));
  return element;
}

const button = (event, key, properties, ...children) =>
  make("button", { type: "button", data: { event, key }, ...properties }, ...children);
const swatch = (colour) => colour && make("span", { className: "ickd-swatch", style: { background: colour } });
const TONES = { "✓": "ickd-right", "✗": "ickd-wrong" };

// A text whose meaning is displayed while the pointer is on it.
const explained = (tip, className = "") => (tip ? { title: tip, className: `${className} ickd-tip` } : { className });
const heading = (text, tip) => text && make("div", { className: "ickd-title" }, make("span", explained(tip), text));
const caption = (text, tip) => make("caption", {}, make("span", explained(tip), text));

// A name that may be broken after each underscore, so that none is cut off.
const breakable = (text) => text.split(/(?<=_)/).flatMap((part, i) => (i ? [make("wbr"), part] : [part]));

const head = (name, scope, tips = {}) => make("th", { scope, ...explained(tips[name]) }, name);

// Hides all but the first row of tiles until they are opened. What is open is kept for the next message.
function fold(grid, name, opened) {
  const toggle = make("button", { type: "button", className: "ickd-toggle", data: { focus: `fold ${name}` } });
  let width;
  const arrange = () => {
    const tiles = [...grid.children], open = opened.has(name);
    for (const tile of tiles) tile.hidden = false;
    const below = tiles.filter((tile) => tile.offsetTop > tiles[0].offsetTop);
    for (const tile of below) tile.hidden = !open;
    toggle.hidden = !below.length;
    toggle.textContent = open ? "show one row" : `show all ${tiles.length}`;
    toggle.setAttribute("aria-expanded", open);
  };
  toggle.onclick = () => {
    opened.has(name) ? opened.delete(name) : opened.add(name);
    arrange();
  };
  new ResizeObserver(() => {
    if (grid.clientWidth !== width) arrange();
    width = grid.clientWidth;
  }).observe(grid);
  return toggle;
}

// Draws one of N images of height x width x 3 bytes at its own size; the page scales it. The first begins at `start`.
function image(strip, at, shape, start) {
  const [, height, width] = shape;
  const canvas = make("canvas", { width, height, aria: { hidden: "true" } });
  const pixels = new ImageData(width, height);
  for (let from = start + at * height * width * 3, to = 0; to < pixels.data.length; from += 3, to += 4) {
    pixels.data[to] = strip[from];
    pixels.data[to + 1] = strip[from + 1];
    pixels.data[to + 2] = strip[from + 2];
    pixels.data[to + 3] = 255;
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

const blocks = {
  row: ({ blocks }, context) => make("div", { className: "ickd-row" }, ...blocks.map((one) => draw(one, context))),

  column: ({ blocks }, context) =>
    make("div", { className: "ickd-column" }, ...blocks.map((one) => draw(one, context))),

  text: ({ text, tone = "note" }) =>
    make("div", { className: `ickd-text ickd-${tone}`, aria: { role: tone === "error" ? "alert" : "status" } }, text),

  crumbs: ({ title, tip, items }) =>
    make("nav", { className: "ickd-crumbs", aria: { label: title } }, heading(title, tip),
      make("ol", {}, ...items.map(({ text, key }, i) => make("li", {},
        i === items.length - 1
          ? make("span", { aria: { current: "page" } }, text)
          : button("crumb", key, {}, text))))),

  tiles: ({ title, tip, tone = "plain", shape, start = 0, tiles, event, folded, pages }, { bytes, opened }) => {
    const grid = make("div", { className: "ickd-grid" }, ...tiles.map(({ at, key, colour, lines, label, plain }) => {
      const [name, ...others] = lines;
      const inside = [
        image(bytes, at, shape, start),
        make("span", { className: "ickd-class" }, swatch(colour), make("span", {}, ...breakable(name))),
        ...others.map((line) => make("span", { className: TONES[line[0]] ?? "" }, ...breakable(line))),
      ];
      return event && !plain
        ? button(event, key, { className: "ickd-tile", title: label, aria: { label } }, ...inside)
        : make("div", { className: "ickd-tile", title: label }, ...inside);
    }));
    const turn = (by, text) => button("page", pages[0] + by, { className: "ickd-toggle", disabled:
      pages[0] + by < 0 || pages[0] + by >= pages[1] }, text);
    return make("section", { className: `ickd-tiles ickd-${tone}`, aria: { label: title } },
      make("div", { className: "ickd-line" }, heading(title, tip), folded && fold(grid, folded, opened),
        pages && pages[1] > 1 && make("span", {}, turn(-1, "◂ previous"), ` page ${pages[0] + 1} of ${pages[1]} `,
          turn(1, "next ▸"))),
      grid);
  },

  verdicts: ({ title, items }) =>
    make("ul", { className: "ickd-verdicts", aria: { label: title } },
      ...items.map(({ who, tip, name, colour, number, right }) => {
        const mark = right === null ? "" : right ? "✓" : "✗";
        return make("li", { className: TONES[mark] ?? "", title: `${who} predicts ${name} with probability ${number}` },
          make("span", explained(tip, "ickd-who"), who), swatch(colour),
          make("b", {}, mark && `${mark} `, ...breakable(name)), make("span", { className: "ickd-number" }, number));
      })),

  bars: ({ title, tip, tips, columns, rows }) => {
    const most = Math.max(1e-9, ...rows.flatMap((row) => row.values));
    return make("table", { className: "ickd-bars" }, caption(title, tip),
      make("thead", {}, make("tr", {}, ...["class", ...columns].map((name) => head(name, "col", tips)))),
      make("tbody", {}, ...rows.map(({ name, colour, marked, values }) =>
        make("tr", { className: marked ? "ickd-marked" : "" },
          make("th", { scope: "row" }, swatch(colour), ...breakable(name), marked ? " ✓" : ""),
          ...values.map((value, i) => make("td", {},
            make("span", { className: `ickd-bar ickd-bar${i}`, style: { "--share": value / most } }),
            make("span", { className: "ickd-number" }, value.toFixed(3))))))));
  },

  table: ({ title, tip, columns, rows, tips }) =>
    make("table", { className: "ickd-table" }, caption(title, tip),
      make("thead", {}, make("tr", {}, ...columns.map((name) => head(name, "col", tips)))),
      make("tbody", {}, ...rows.map(([name, ...cells]) =>
        make("tr", {}, head(name, "row", tips), ...cells.map((cell) => make("td", {}, cell)))))),

  matrix: ({ title, tip, classes, counts }) => {
    const total = (row) => Math.max(1, row.reduce((sum, count) => sum + count, 0));
    const cell = (count, i, j) => {
      const label = `${count} of class ${classes[i]} predicted as ${classes[j]}`;
      const style = { "--share": count / total(counts[i]) };
      const className = `ickd-cell ${i === j ? "ickd-hit" : "ickd-miss"}`;
      return make("td", {}, count ? button("cell", `${i},${j}`, { className, title: label, aria: { label }, style }, count) : "");
    };
    return make("div", { className: "ickd-wide" }, make("table", { className: "ickd-matrix" }, caption(title, tip),
      make("thead", {}, make("tr", {}, make("td"),
        ...classes.map((name) => make("th", { scope: "col" }, make("span", {}, name))))),
      make("tbody", {}, ...counts.map((row, i) =>
        make("tr", {}, make("th", { scope: "row" }, classes[i]), ...row.map((count, j) => cell(count, i, j)))))));
  },

  legend: ({ title, items }) =>
    make("section", { className: "ickd-legend", aria: { label: title } },
      ...items.map(({ key, name, colour, tip, pressed }) => button("legend", key, { title: tip ?? "",
        ...(pressed === undefined ? {} : { aria: { pressed } }) }, swatch(colour), ...breakable(name)))),

  ranking: ({ title, tip, event, items }) =>
    make("section", { className: "ickd-ranking", aria: { label: title } }, heading(title, tip),
      make("ul", {}, ...items.map(({ key, name, colour, number, share }) =>
        make("li", {}, button(event, key, { style: { "--share": share }, title: `select: ${name}` },
          make("span", {}, swatch(colour), ...breakable(name)), make("span", { className: "ickd-number" }, number)))))),

  picture: ({ alt }, { bytes }) => {
    const url = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
    return make("img", { className: "ickd-picture", alt, src: url });
  },
};

