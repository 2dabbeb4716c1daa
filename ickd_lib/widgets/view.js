// Displays the blocks of a View. They are sent in messages and not as widget state, so that saved notebooks stay small.
// Each message replaces all blocks at once, so that the page does not flicker.

const draw = (block, context) => blocks[block.kind](block, context);

function save(name, type, bytes) {
  const url = URL.createObjectURL(new Blob([bytes], { type }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

const STOPPED = "The kernel has stopped, so this explorer no longer answers. Start a kernel, and run the cells again.";

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
      const opened = new Set(); // the folded blocks that are open
      const refresh = async () => {
        if (!latest) return el.replaceChildren(make("div", { className: "ickd-text ickd-note" }, model.get("waiting")));
        const current = latest;
        let drawn;
        try {
          drawn = current.blocks.map((block) => draw(block, { ...current, send, opened }));
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
      // What no event reports is looked at twice a second: a stopped kernel, sliders without a name, maps of a new size.
      let maps = "";
      const look = () => {
        const box = el.closest(".ickd-explorer"), kernel = model.widget_manager?.kernel;
        if (!box) return;
        const gone = kernel === null || kernel?.isDisposed || kernel?.status === "dead";
        if ((gone || box.classList.contains("jupyter-widgets-disconnected")) && !box.querySelector(".ickd-stopped")) {
          box.prepend(make("div", { className: "ickd-stopped", aria: { role: "alert" } }, STOPPED));
        }
        for (const label of box.querySelectorAll(".widget-label, .widget-label-basic")) {
          const tip = model.get("tips")[label.textContent.trim()];
          if (tip) [label, ...label.querySelectorAll("[title]")].forEach((one) => (one.title = tip));
        }
        // ipywidgets writes the number of files after the name of the button, but each image replaces the one before.
        for (const one of box.querySelectorAll(".widget-upload")) {
          const text = one.lastChild, name = text.data.replace(/ \(\d+\)$/, "");
          if (name !== text.data) text.data = name;
        }
        // ipywidgets gives the handles of sliders no name, so screen readers would announce a number alone.
        for (const slider of box.querySelectorAll(".widget-slider")) {
          const label = slider.querySelector(".widget-label")?.textContent ?? "";
          slider.querySelectorAll("[role=slider], .widget-readout").forEach((one) => one.setAttribute("aria-label", label));
        }
        const shown = [...box.querySelectorAll("canvas:not([aria-hidden])")];
        const sizes = shown.map((one) => [one.width, one.clientWidth]).join();
        const widest = Math.max(0, ...shown.map((one) => one.clientWidth));
        if (sizes !== maps) model.send({ event: "resize", key: `${widest}` });
        maps = sizes;
      };
      const looking = setInterval(look, 500);
      let width = 0, timer;
      const size = new ResizeObserver(() => {
        const changed = el.clientWidth && el.clientWidth !== width;
        width = el.clientWidth || width;
        if (!changed) return;
        clearTimeout(timer);
        timer = setTimeout(() => model.send({ event: "resize" }), 300);
      });
      size.observe(el);
      el.addEventListener("click", clicked);
      views.add(refresh);
      refresh();
      model.send({ event: "ready", dark: isDark(), fresh: !latest });
      return () => {
        views.delete(refresh);
        el.querySelectorAll("img").forEach((one) => URL.revokeObjectURL(one.src));
        watch.disconnect();
        size.disconnect();
        clearTimeout(timer);
        clearInterval(looking);
      };
    },
  };
};
