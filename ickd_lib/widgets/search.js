// A search field. Class names and other words complete the last word, and Enter sends the text to Python.

export default {
  render({ model, el }) {
    el.classList.add("ickd");
    const id = `ickd-${model.get("_model_id") ?? ""}${Math.random().toString(36).slice(2)}`;
    const make = (tag, properties) => Object.assign(document.createElement(tag), properties);
    const input = make("input", { type: "search", value: model.get("value"), placeholder: model.get("placeholder") });
    const offers = make("datalist", { id });
    const help = make("div", { className: "ickd-help", id: `${id}-help`, textContent: model.get("help") });
    const label = make("label", { textContent: "search " });
    input.setAttribute("list", id);
    input.setAttribute("aria-label", "search");
    input.setAttribute("aria-describedby", help.id);
    input.dataset.lmSuppressShortcuts = "true";

    const complete = () => {
      const start = input.value.lastIndexOf(" ") + 1, before = input.value.slice(0, start), word = input.value.slice(start);
      const colon = word.lastIndexOf(":") + 1, head = word.slice(0, colon), part = word.slice(colon).toLowerCase();
      const fits = (one) => (start + colon ? one.toLowerCase().startsWith(part) : one.toLowerCase().includes(part));
      const found = part || colon ? model.get("words").filter((one) => fits(one) && !(colon && one.includes(":"))) : [];
      offers.replaceChildren(...found.slice(0, 30).map((one) => make("option", { value: before + head + one })));
    };
    const send = () => {
      model.set("value", input.value);
      model.save_changes();
    };
    const follow = () => {
      input.value = model.get("value");
    };
    input.addEventListener("input", complete);
    input.addEventListener("change", send);
    input.addEventListener("keydown", (event) => event.key === "Enter" && !event.isComposing && send());
    model.on("change:value", follow);
    label.append(input);
    el.replaceChildren(label, offers, help);
    return () => model.off("change:value", follow);
  },
};
