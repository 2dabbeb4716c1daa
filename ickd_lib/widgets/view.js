// Displays the blocks of a View; view.py describes them. They are sent in messages and not as widget state, so that
// saved notebooks stay small. Each message replaces all blocks at once, so that the page does not flicker.

function make(tag, properties = {}, ...children) {
  const { data = {}, aria = {}, style = {}, ...rest } = properties;
  const element = Object.assign(document.createElement(tag), rest);
  Object.assign(element.dataset, data);
  for (const [name, value] of Object.entries(aria)) {
    element.setAttribute(name === "role" ? name : `aria-${name}`, value);
  }
  for (const [name, value] of Object.entries(style)) element.style.setProperty(name, value);
  element.append(...children.filter((child) => child !== undefined && child !== null));
  return element;
}

const button = (event, key, properties, ...children) =>
  make("button", { type: "button", data: { event, key }, ...properties }, ...children);
const swatch = (colour) => colour && make("span", { className: "ickd-swatch", style: { background: colour } });
const heading = (text) => text && make("div", { className: "ickd-title" }, text);

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

  text: ({ text, tone = "note" }) =>
    make("div", { className: `ickd-text ickd-${tone}`, aria: { role: tone === "error" ? "alert" : "status" } }, text),

  crumbs: ({ title, items }) =>
    make("nav", { className: "ickd-crumbs", aria: { label: title } }, heading(title),
      make("ol", {}, ...items.map(({ text, key }, i) => make("li", {},
        i === items.length - 1
          ? make("span", { aria: { current: "page" } }, text)
          : button("crumb", key, {}, text))))),

  tiles: ({ title, tone = "plain", shape, start = 0, tiles, event }, { bytes }) =>
    make("section", { className: `ickd-tiles ickd-${tone}`, aria: { label: title } }, heading(title),
      make("div", { className: "ickd-grid" }, ...tiles.map(({ at, key, colour, lines, label }) => {
        const inside = [
          image(bytes, at, shape, start),
          make("span", { className: "ickd-class" }, swatch(colour), lines[0]),
          ...lines.slice(1).map((line) => make("span", {}, line)),
        ];
        return event
          ? button(event, key, { className: "ickd-tile", title: label, aria: { label } }, ...inside)
          : make("div", { className: "ickd-tile", title: label }, ...inside);
      }))),

  bars: ({ title, columns, rows }) => {
    const most = Math.max(1e-9, ...rows.flatMap((row) => row.values));
    return make("table", { className: "ickd-bars" }, make("caption", {}, title),
      make("thead", {}, make("tr", {}, ...["class", ...columns].map((name) => make("th", { scope: "col" }, name)))),
      make("tbody", {}, ...rows.map(({ name, colour, marked, values }) =>
        make("tr", { className: marked ? "ickd-marked" : "" },
          make("th", { scope: "row" }, swatch(colour), name + (marked ? " ✓" : "")),
          ...values.map((value, i) => make("td", {},
            make("span", { className: `ickd-bar ickd-bar${i}`, style: { "--share": value / most } }),
            make("span", { className: "ickd-number" }, value.toFixed(3))))))));
  },

  table: ({ title, columns, rows }) =>
    make("table", { className: "ickd-table" }, make("caption", {}, title),
      make("thead", {}, make("tr", {}, ...columns.map((name) => make("th", { scope: "col" }, name)))),
      make("tbody", {}, ...rows.map(([name, ...cells]) =>
        make("tr", {}, make("th", { scope: "row" }, name), ...cells.map((cell) => make("td", {}, cell)))))),

  // A table of rows to choose from. The chosen rows, the filter and the order are stored in the block. They are sent to
  // Python shortly after the last interaction, so that several quick clicks cause only one redrawing.
  choices: (block, { send }) => {
    const { title, columns, rows } = block;
    const chosen = (block.marked ??= new Set(block.chosen)); // shared by all views of the table
    let timer;
    const report = () => {
      clearTimeout(timer);
      timer = setTimeout(() => {
        const key = JSON.stringify({ chosen: [...chosen], filter: block.filter, sort: block.sort });
        send({ event: "choices", key });
      }, 250);
    };
    const lines = rows.map(({ key, cells }) => {
      const box = make("input", { type: "checkbox", data: { focus: key }, checked: chosen.has(key), tabIndex: -1,
        aria: { label: `choose ${key}` } });
      const [first, ...others] = cells;
      const row = make("tr", {}, make("td", {}, box), make("th", { scope: "row" }, first),
        ...others.map((cell, i) => make("td", { className: columns[i + 1].number ? "ickd-numeric" : "" }, cell)));
      return { key, cells, box, row, text: cells.join(" ").toLowerCase() };
    });
    const all = make("input", { type: "checkbox", aria: { label: "choose all shown" } });
    const filter = make("input", { type: "search", data: { focus: "filter" }, value: block.filter,
      placeholder: "words that a row must contain" });
    const count = make("span", { className: "ickd-note", aria: { role: "status" } });
    const heads = columns.map(({ name }, at) => {
      const onclick = () => {
        block.sort = [at, block.sort[0] === at && !block.sort[1]];
        arrange();
        report();
      };
      return make("th", { scope: "col" }, make("button", { type: "button", onclick }, name));
    });
    const body = make("tbody");
    const shown = () => lines.filter(({ row }) => !row.hidden);
    const mark = () => {
      const some = shown(), here = some.filter(({ box }) => box.checked).length;
      for (const { row, box } of lines) row.classList.toggle("ickd-chosen", box.checked);
      all.checked = here > 0 && here === some.length;
      all.indeterminate = here > 0 && here < some.length;
      count.textContent = `${chosen.size} chosen` + (here < chosen.size ? ` (${chosen.size - here} not shown)` : "") +
        `, ${some.length} of ${rows.length} shown`;
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
      make("div", { className: "ickd-row" }, make("label", {}, "filter ", filter), count),
      make("div", { className: "ickd-scroll" }, make("table", {},
        make("thead", {}, make("tr", {}, make("th", {}, all), ...heads)), body)));
    sift();
    arrange();
    return root;
  },

  picture: ({ alt }, { bytes }) => {
    const url = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
    return make("img", { className: "ickd-picture", alt, src: url });
  },
};

const draw = (block, context) => blocks[block.kind](block, context);

function save(name, type, bytes) {
  const url = URL.createObjectURL(new Blob([bytes], { type }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

const isDark = () => document.body.dataset.jpThemeLight === "false" ||
  /dark/.test(document.body.dataset.vscodeThemeKind ?? "");

export default () => {
  let latest; // the last message, for views that open later
  const views = new Set();
  return {
    initialize({ model }) {
      model.on("msg:custom", (content, buffers) => {
        const part = buffers?.[0];
        const bytes = part && new Uint8Array(part.buffer ?? part, part.byteOffset ?? 0, part.byteLength);
        if (content.save) return save(content.save, content.type, bytes);
        latest = { blocks: content.blocks, bytes };
        views.forEach((view) => view());
      });
    },
    render({ model, el }) {
      el.classList.add("ickd");
      const send = (message) => model.send(message);
      const refresh = async () => {
        if (!latest) return el.replaceChildren(make("div", { className: "ickd-text ickd-note" }, model.get("waiting")));
        const current = latest;
        let drawn;
        try {
          drawn = current.blocks.map((block) => draw(block, { ...current, send }));
        } catch (error) { // the previous content must not remain in place of blocks that cannot be drawn
          drawn = [blocks.text({ text: `this content cannot be displayed: ${error}`, tone: "error" })];
        }
        const pictures = drawn.filter((one) => one.matches("img"));
        await Promise.all(pictures.map((one) => one.decode().catch(() => {})));
        const old = current !== latest || !views.has(refresh); // a newer message arrived, or the view was closed
        (old ? pictures : [...el.querySelectorAll("img")]).forEach((one) => URL.revokeObjectURL(one.src));
        if (old) return;
        const { event, key, focus } = el.contains(document.activeElement) ? document.activeElement.dataset : {};
        el.replaceChildren(...drawn);
        const again = (name, value) =>
          [...el.querySelectorAll(`[data-${name}]`)].filter((one) => one.dataset[name] === value);
        if (focus) again("focus", focus)[0]?.focus();
        if (event) {
          const same = again("event", event);
          (same.find((one) => one.dataset.key === key) ?? same[0] ?? el.querySelector("button"))?.focus();
        }
      };
      const clicked = ({ target }) => {
        const { event, key } = target.closest("[data-event]")?.dataset ?? {};
        if (event) model.send({ event, key });
      };
      const themed = () => model.send({ event: "theme", dark: isDark() });
      const watch = new MutationObserver(themed);
      const attributeFilter = ["data-jp-theme-light", "data-vscode-theme-kind"];
      watch.observe(document.body, { attributes: true, attributeFilter });
      el.addEventListener("click", clicked);
      views.add(refresh);
      refresh();
      model.send({ event: "ready", dark: isDark(), fresh: !latest });
      return () => {
        views.delete(refresh);
        el.querySelectorAll("img").forEach((one) => URL.revokeObjectURL(one.src));
        watch.disconnect();
      };
    },
  };
};
