// A gallery: what an explorer displays, without a kernel. blocks.js and this file are one script.

const content = JSON.parse(document.getElementById("content").textContent);
const root = document.getElementById("gallery");
const draw = (block, context) => blocks[block.kind](block, context);
const opened = new Set(); // the folded blocks that are open

// Returns the bytes of all images of a sheet, in the order [n, height, width, 3] of a view's messages.
async function unpacked({ source, shape: [n, height, width], cell: [high, wide] }) {
  const picture = new Image();
  picture.src = source;
  await picture.decode();
  const canvas = make("canvas", { width: picture.width, height: picture.height });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(picture, 0, 0);
  const all = pen.getImageData(0, 0, picture.width, picture.height).data;
  const bytes = new Uint8Array(n * height * width * 3), columns = picture.width / wide;
  for (let i = 0, to = 0; i < n; i++) {
    const left = (i % columns) * wide, top = Math.floor(i / columns) * high;
    for (let y = 0; y < height; y++) {
      for (let x = 0, from = 4 * ((top + y) * picture.width + left); x < width; x++, from += 4, to += 3) {
        bytes.set(all.subarray(from, from + 3), to);
      }
    }
  }
  return bytes;
}

const sheets = await Promise.all(content.sheets.map(async (sheet) => ({ ...sheet, bytes: await unpacked(sheet) })));

// Draws a block whose tiles refer to the sheets.
function put(block) {
  if (block.blocks) return make("div", { className: `ickd-${block.kind}` }, ...block.blocks.map(put));
  const { bytes, shape } = sheets[block.sheet ?? 0] ?? {};
  return draw({ ...block, shape }, { bytes, opened });
}

const control = (name, element, tip) => make("label", {}, make("span", explained(tip), name), " ", element);
const choice = (names, value, onchange) => {
  const options = names.map((name) => make("option", { value: name, selected: name === value }, name));
  const select = make("select", {}, ...options);
  select.onchange = () => onchange(select.value);
  return select;
};
const key = (name) => make("kbd", { className: "ickd-key" }, name);
const typing = ({ target, altKey, ctrlKey, metaKey }) =>
  altKey || ctrlKey || metaKey || /^(INPUT|SELECT|TEXTAREA)$/.test(target.tagName);

// A list of entries, such as queries, and one page of blocks for each. The address of a page ends with #key.
function list({ listing, pages, of }) {
  const keys = listing.tiles.map((tile) => tile.key);
  const now = () => {
    try {
      return Math.max(0, keys.indexOf(decodeURIComponent(location.hash.slice(1))));
    } catch { // the address was typed, and is not one of this page
      return 0;
    }
  };
  const go = (at) => (location.hash = encodeURIComponent(keys[(at + keys.length) % keys.length]));
  const entries = make("div", { className: "ickd-strip" }, put(listing)), head = make("h2", { tabIndex: -1 }), main = make("div");
  const buttons = [...entries.querySelectorAll("button.ickd-tile")];
  const filter = make("input", { type: "search", placeholder: "a class, or a row" });
  const found = make("span", { className: "ickd-note", aria: { role: "status" } });
  filter.oninput = () => {
    const words = filter.value.toLowerCase().split(/\s+/);
    let count = 0;
    listing.tiles.forEach(({ label }, i) => {
      const fits = words.every((word) => label.toLowerCase().includes(word));
      buttons[i].classList.toggle("ickd-left-out", !fits);
      count += fits;
    });
    found.textContent = filter.value ? `${count} of ${keys.length}` : "";
  };
  const show = (focus) => {
    const at = now(), { label } = listing.tiles[at];
    buttons.forEach((one, i) => one.setAttribute("aria-current", i === at));
    buttons[at].scrollIntoView({ block: "nearest", inline: "nearest" });
    head.textContent = `${label} (${at + 1} of ${keys.length})`;
    main.replaceChildren(...pages[keys[at]].map(put));
    if (focus) head.focus({ preventScroll: true });
  };
  const pass = (by) => { // to the next entry that the filter shows
    let at = now();
    for (let i = 0; i < keys.length; i++) {
      at = (at + by + keys.length) % keys.length;
      if (!buttons[at].classList.contains("ickd-left-out")) break;
    }
    go(at);
  };
  const step = (by, text) => {
    const one = make("button", { type: "button" }, text);
    one.onclick = () => pass(by);
    return one;
  };
  root.replaceChildren(
    make("div", { className: "ickd-bar-of-controls" }, step(-1, `previous ${of}`), step(1, `next ${of}`),
      control("filter", filter, "Only entries that contain all of these words are shown."), found,
      make("span", { className: "ickd-note" }, key("←"), " ", key("→"), ` previous and next ${of}; `,
        key("Tab"), " ", key("Enter"), " open an image; the browser goes back")),
    entries, head, main);
  root.onclick = ({ target }) => {
    const to = target.closest("[data-event=open]")?.dataset.key;
    if (to) go(keys.indexOf(to));
  };
  document.onkeydown = (event) => {
    if (typing(event) || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    event.preventDefault();
    pass(event.key === "ArrowRight" ? 1 : -1);
  };
  onhashchange = () => show(!entries.contains(document.activeElement) && main.contains(document.activeElement));
  show(false);
}

// Linked maps of the same samples. The arrow keys move from point to point, and Enter selects one.
function maps({ images, classes, labels, networks, shown, colours, judged, selected, sample, terms }) {
  const names = Object.keys(networks), n = labels.length, MOST = 24;
  const state = { by: Object.keys(colours)[0], judged, members: new Set(selected), title: "selected", here: -1,
    named: Object.values(colours)[0].entries.length <= 20 };
  const right = (name, i) => networks[name].predicted[i] === labels[i];
  const SVG = "http://www.w3.org/2000/svg";
  const legend = make("div"), below = make("div");
  const beside = make("div", { className: "ickd-beside", aria: { live: "polite" } });

  const tile = (i) => {
    const { predicted, confidence } = networks[state.judged], { at, lines } = images.tiles[i];
    const guess = `${right(state.judged, i) ? "✓" : "✗"} ${classes[predicted[i]]} ${confidence[i].toFixed(2)}`;
    const all = [classes[labels[i]], guess, ...lines];
    return { at, key: i, lines: all, label: `look at ${all.join(", ")}` };
  };
  const look = (i) => {
    state.here = i;
    for (const map of drawn) map.mark(i);
    if (i < 0) return beside.replaceChildren(make("p", { className: "ickd-text" },
      `Point at ${/^[aeiou]/.test(sample) ? "an" : "a"} ${sample}, or move to a map with `, key("Tab"), " and from point to point with the arrow keys. ",
      key("Enter"), " selects its class."));
    const rows = names.map((name) => [name, `${right(name, i) ? "✓" : "✗"} ${classes[networks[name].predicted[i]]}`,
      networks[name].confidence[i].toFixed(3)]);
    const one = { kind: "tiles", tone: "query", title: sample, tip: terms.sample, sheet: images.sheet, tiles: [tile(i)] };
    const table = { kind: "table", title: `class ${classes[labels[i]]}`, rows,
      tip: terms["predictions for"], tips: terms, columns: ["network", "prediction", "its probability"] };
    beside.replaceChildren(put({ kind: "row", blocks: [one, table] }));
  };
  const select = (members, title, judged = false) => { // judged: whether the predictions of one network define them
    state.members = new Set(members);
    state.title = title;
    state.of = judged;
    refresh();
  };
  const every = (holds) => [...labels.keys()].filter(holds);
  const selectClass = (c) => select(every((i) => labels[i] === c), `class ${classes[c]}`);

  const drawn = shown.map((name) => {
    const { points } = networks[name];
    const circles = points.map(([x, y], i) => {
      const circle = document.createElementNS(SVG, "circle");
      for (const [attribute, value] of Object.entries({ cx: x, cy: -y, r: 0.02, id: `${shown.indexOf(name)}-${i}`,
        role: "option", "aria-label": `${classes[labels[i]]}, ${images.tiles[i].lines[0]}`, "aria-selected": "false" })) {
        circle.setAttribute(attribute, value);
      }
      circle.onpointerenter = () => look(i);
      circle.onclick = () => selectClass(labels[i]);
      return circle;
    });
    const svg = document.createElementNS(SVG, "svg");
    for (const [attribute, value] of Object.entries({ viewBox: "-1 -1 2 2", class: "ickd-map", tabindex: 0,
      role: "listbox", "aria-multiselectable": "true", "aria-label": `map of ${name}` })) {
      svg.setAttribute(attribute, value);
    }
    const labelled = document.createElementNS(SVG, "g");
    labelled.setAttribute("aria-hidden", "true");
    svg.append(...circles, labelled);
    svg.onfocus = () => look(state.here < 0 ? 0 : state.here);
    svg.onkeydown = (event) => {
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      if (event.key === "Enter") selectClass(labels[state.here]);
      if (!way) return;
      event.preventDefault();
      const [x, y] = points[state.here];
      let best = state.here, least = Infinity; // the nearest point that lies in this direction
      points.forEach(([u, v], i) => {
        const along = (u - x) * way[0] + (v - y) * way[1], across = Math.abs((u - x) * way[1]) + Math.abs((v - y) * way[0]);
        if (along > 1e-6 && across <= along && along + across < least) [best, least] = [i, along + across];
      });
      look(best);
    };
    const paint = () => {
      const { entries, of } = colours[state.by];
      circles.forEach((circle, i) => {
        circle.setAttribute("fill", entries[of[name][i]][1]);
        circle.setAttribute("aria-selected", state.members.has(i));
        circle.classList.toggle("ickd-faded", state.members.size > 0 && !state.members.has(i));
      });
      label();
    };
    // The name of each cluster stands at the median of its points, unless it would overlap that of a larger cluster.
    const median = (numbers) => numbers.sort((one, other) => one - other)[Math.floor(numbers.length / 2)];
    const label = () => {
      const { entries, of } = colours[state.by], named = state.named && ["class", "superclass"].includes(state.by);
      const clusters = (named ? entries : []).map(([text], e) => [text, every((i) => of[name][i] === e)])
        .filter(([, members]) => members.length && (!state.members.size || members.some((i) => state.members.has(i))));
      labelled.replaceChildren();
      for (const [text, members] of clusters.sort(([, one], [, other]) => other.length - one.length)) {
        const one = document.createElementNS(SVG, "text");
        one.setAttribute("x", median(members.map((i) => points[i][0])));
        one.setAttribute("y", -median(members.map((i) => points[i][1])));
        one.textContent = text.replaceAll("_", " ");
        labelled.append(one);
        const half = one.getBBox().width / 2; // it stays inside the map
        one.setAttribute("x", Math.min(Math.max(one.getAttribute("x"), half - 0.98), 0.98 - half));
        const box = one.getBBox();
        if ([...labelled.children].slice(0, -1).map((larger) => larger.getBBox()).some(({ x, y, width, height }) =>
          x < box.x + box.width && box.x < x + width && y < box.y + box.height && box.y < y + height)) one.remove();
      }
    };
    const mark = (here) => {
      circles.forEach((circle, i) => circle.classList.toggle("ickd-here", i === here));
      if (here >= 0) svg.setAttribute("aria-activedescendant", circles[here].id);
    };
    return { figure: make("figure", {}, make("figcaption", {}, make("span", explained(terms["map of"]), name)), svg), paint, mark };
  });

  const refresh = () => {
    const { entries, of } = colours[state.by];
    legend.replaceChildren(put({ kind: "legend", title: "legend", items: entries.map(([name, colour], key) =>
      ({ key, name, colour, tip: `select: ${name}`, pressed: state.title === name })) }));
    drawn.forEach((map) => map.paint());
    const counts = new Map();
    const classesRight = classes.map(() => [0, 0]);
    labels.forEach((label, i) => {
      const predicted = networks[state.judged].predicted[i];
      classesRight[label][0] += predicted === label;
      classesRight[label][1] += 1;
      if (predicted !== label) counts.set(`${label},${predicted}`, (counts.get(`${label},${predicted}`) ?? 0) + 1);
    });
    const errors = [...counts].sort((one, other) => other[1] - one[1]).slice(0, 30);
    const accuracies = classesRight.map(([hits, all], c) => ({ c, share: hits / all, all })).filter(({ all }) => all);
    const rankings = [
      { kind: "ranking", title: `most frequent errors of ${state.judged}: label → prediction`, tip: terms.errors, event: "cell",
        items: errors.map(([pair, count]) => ({ key: pair, number: count, share: count / errors[0][1],
          name: pair.split(",").map((c) => classes[c]).join(" → ") })) },
      { kind: "ranking", title: `accuracy of ${state.judged} by class`, tip: terms["accuracy by class"], event: "class",
        items: accuracies.sort((one, other) => one.share - other.share).map(({ c, share }) => ({ key: c, share,
          name: classes[c], number: `${(100 * share).toFixed(0)} %` })) },
    ];
    // The least confident ones first: they are the outliers.
    const members = [...state.members].sort((i, j) =>
      networks[state.judged].confidence[i] - networks[state.judged].confidence[j]);
    const title = `${members.length} selected: ${state.title}` + (members.length > MOST ? `, ${MOST} shown` : "") +
      `, the lowest confidence of ${state.judged} first`;
    const chosen = { kind: "tiles", title, tip: terms.selected, event: "look", sheet: images.sheet, tiles: members.slice(0, MOST).map(tile) };
    below.replaceChildren(...(members.length ? [put(chosen)] : []), put({ kind: "row", blocks: rankings }));
  };
  legend.onclick = ({ target }) => {
    const entry = Number(target.closest("[data-event]")?.dataset.key ?? NaN);
    if (Number.isNaN(entry)) return;
    const { entries, of } = colours[state.by], name = entries[entry][0];
    state.title === name ? select([], "") : select(every((i) => of[state.judged][i] === entry), name, !["class", "superclass"].includes(state.by));
  };
  below.onclick = ({ target }) => {
    const { event, key } = target.closest("[data-event]")?.dataset ?? {};
    const [label, predicted] = (key ?? "").split(",").map(Number);
    if (event === "look") look(label);
    if (event === "class") selectClass(label);
    if (event === "cell") {
      const members = every((i) => labels[i] === label && networks[state.judged].predicted[i] === predicted);
      select(members, `class ${classes[label]}, predicted as ${classes[predicted]}`, true);
    }
  };
  const only = (first, second) => {
    const text = `${first} right, ${second} wrong`, one = make("button", { type: "button" }, text);
    one.onclick = () => select(every((i) => right(first, i) && !right(second, i)), text);
    return one;
  };
  const clear = make("button", { type: "button" }, "clear selection");
  clear.onclick = () => select([], "");
  const of = choice(names, judged, (value) => {
    state.judged = value;
    state.of ? select([], "") : refresh();
    look(state.here);
  });
  const by = choice(Object.keys(colours), state.by, (value) => {
    state.by = value;
    refresh();
  });
  const other = names.find((name) => name !== shown[0]);
  const pair = names.length > 1 ? [shown[0], shown[1] ?? other] : [];
  const naming = make("input", { type: "checkbox", checked: state.named });
  naming.onchange = () => {
    state.named = naming.checked;
    refresh();
  };
  root.replaceChildren(
    make("div", { className: "ickd-bar-of-controls" }, control("colour", by, terms.colour),
      control("names", naming, terms.names), control("predictions of", of, terms["predictions of"]),
      ...(pair.length ? [only(...pair), only(...pair.reverse())] : []), clear),
    make("div", { className: "ickd-maps" }, ...drawn.map(({ figure }) => figure), beside), legend, below);
  refresh();
  look(-1);
}

// The runs of a folder: a table to filter and sort, and a figure of each kind in the theme of the page.
function runs({ table, notes, figures }) {
  const dark = matchMedia("(prefers-color-scheme: dark)"), picture = make("img", { className: "ickd-picture" });
  const look = () => {
    const { light, dark: darker, alt } = figures[show.value];
    Object.assign(picture, { src: dark.matches ? darker : light, alt });
  };
  const show = choice(Object.keys(figures), Object.keys(figures)[0], look);
  dark.onchange = look;
  root.replaceChildren(draw(table, {}), ...notes.map(put),
    make("div", { className: "ickd-bar-of-controls" }, control("show", show, "What the figure shows.")), picture);
  look();
}

({ list, maps, runs })[content.kind](content);
