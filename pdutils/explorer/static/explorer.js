// The explorer's face. It computes nothing: it asks for settings and shows what comes back.
// kernel.js stands before it.

const PICTURES = [
  ["clean", "Clean"],
  ["adversary", "Adversary"],
  ["defended", "Defended"],
  ["deflected", "Deflected pixels"],
  ["attack", "What the attack added"],
  ["left", "What is left"],
];

const WORDS = {
  attack: {
    shipped: "the image's own",
    weak: "IGSM, weak",
    strong: "IGSM, strong",
    fgsm: "FGSM, one step",
    none: "none",
  },
  reading: { blog: "blog", repo: "authors' code", paper: "paper" },
  activation: { none: "none", cam: "CAM", rcam: "R-CAM" },
  combine: { paper: "paper", geometric: "blog", repo: "authors' code" },
  denoiser: {
    none: "none",
    wavelet: "wavelets",
    tv: "total variation",
    bilateral: "bilateral",
    nl_means: "non-local means",
    wiener: "Wiener",
    median: "median",
    jpeg: "JPEG",
    dct: "cosines (DCT)",
  },
  mode: { soft: "soft", hard: "hard" },
  sigma_scale: { channel: "a channel (2018)", rgb: "RGB (today)" },
};

const LENS = { share: 0.46, pixels: 26 };

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function blob(bytes, type = "image/webp") {
  return new Blob([bytes], { type });
}

function save(content, name) {
  const address = URL.createObjectURL(content);
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

// One control: its label, its input, and how a setting goes in and out.
function slider(view, key, text, { low, high, step, digits = 0, live = true, unit = "" }) {
  const id = view.id(key);
  const input = make("input", { type: "range", id, min: low, max: high, step, name: key });
  const output = make("output", { for: id });
  const tell = () => {
    output.textContent = Number(input.value).toFixed(digits) + unit;
  };
  input.addEventListener("input", () => {
    tell();
    if (live) view.ask({ [key]: Number(input.value) }, false);
  });
  input.addEventListener("change", () => view.ask({ [key]: Number(input.value) }, true));
  const node = make(
    "div",
    { class: "pdx-slider" },
    make("label", { for: id }, text),
    output,
    input,
  );
  const set = (settings) => {
    input.value = settings[key];
    tell();
  };
  return { node, inputs: [input], set };
}

function select(view, key, text, options, { read, write } = {}) {
  const id = view.id(key);
  const input = make("select", { id, name: key });
  for (const [value, words] of Object.entries(options)) {
    input.append(make("option", { value }, words));
  }
  input.addEventListener("change", () => {
    view.ask(write ? write(input.value) : { [key]: input.value }, true);
  });
  const node = make("div", { class: "pdx-select" }, make("label", { for: id }, text), input);
  const set = (settings) => {
    input.value = read ? read(settings) : settings[key];
  };
  return { node, inputs: [input], set };
}

function choice(view, key, text, options) {
  const group = view.id(key);
  const inputs = Object.entries(options).map(([value]) =>
    make("input", { type: "radio", name: group, value, id: `${group}-${value}` }),
  );
  const labels = Object.entries(options).map(([value, words]) =>
    make("label", { for: `${group}-${value}` }, words),
  );
  for (const input of inputs) {
    input.addEventListener("change", () => view.ask({ [key]: input.value }, true));
  }
  const label = make("span", { id: `${group}-label` }, text);
  const pairs = inputs.flatMap((input, i) => [input, labels[i]]);
  const set = (settings) => {
    for (const input of inputs) input.checked = input.value === settings[key];
  };
  const row = make(
    "div",
    { class: "pdx-switch", role: "radiogroup", "aria-labelledby": `${group}-label` },
    ...pairs,
  );
  return { node: make("div", { class: "pdx-select" }, label, row), inputs, set };
}

function seed(view, most) {
  const id = view.id("seed");
  const input = make("input", { type: "number", id, name: "seed", min: 0, max: most, step: 1 });
  input.addEventListener("change", () => view.ask({ seed: Number(input.value) }, true));
  const again = make("button", { type: "button", class: "pdx-quiet" }, "New draw");
  again.addEventListener("click", () => {
    input.value = (Number(input.value) + 1) % most;
    view.ask({ seed: Number(input.value) }, true);
  });
  const set = (settings) => {
    input.value = settings.seed;
  };
  const node = make(
    "div",
    { class: "pdx-seed" },
    make("label", { for: id }, "Seed"),
    input,
    again,
  );
  return { node, inputs: [input], set };
}

function group(title, hint, controls) {
  return make(
    "fieldset",
    {},
    make("legend", {}, title),
    ...(hint ? [make("p", { class: "pdx-hint" }, hint)] : []),
    ...controls.map((control) => control.node),
  );
}

function makeControls(view, offer) {
  const networks = {};
  for (const { name, at_hand } of offer.classifiers) {
    networks[name] = at_hand ? name : `${name} (downloads its weights)`;
  }
  const attack = {
    read: (s) => (s.attack === "igsm" ? (s.stop ? "weak" : "strong") : s.attack),
    write: (v) =>
      v === "weak" || v === "strong" ? { attack: "igsm", stop: v === "weak" } : { attack: v },
  };
  const all = {
    classifier: select(view, "classifier", "Network", networks),
    attack: select(view, "attack", "Attack", WORDS.attack, attack),
    eps: slider(view, "eps", "Strength, grey levels", { low: 1, high: 32, step: 1, live: false }),
    steps: slider(view, "steps", "Steps of 1 grey level", {
      low: 1, high: 50, step: 1, live: false,
    }),
    deflections: slider(view, "deflections", "Deflections", { low: 0, high: 3000, step: 20 }),
    window: slider(view, "window", "Window, pixels", { low: 1, high: 50, step: 1 }),
    reading: select(view, "reading", "Reading", WORDS.reading),
    activation: choice(view, "activation", "Spare by", WORDS.activation),
    combine: select(view, "combine", "Combine", WORDS.combine),
    k: slider(view, "k", "Classes in R-CAM, k", { low: 1, high: 10, step: 1 }),
    denoiser: select(view, "denoiser", "Denoiser", WORDS.denoiser),
    sigma: slider(view, "sigma", "Sigma", { low: 0.005, high: 0.2, step: 0.005, digits: 3 }),
    mode: choice(view, "mode", "Shrinkage", WORDS.mode),
    sigma_scale: select(view, "sigma_scale", "Sigma of", WORDS.sigma_scale),
    runs: slider(view, "runs", "Runs, averaged", { low: 1, high: 20, step: 1 }),
    seed: seed(view, offer.ranges.seed[1]),
  };
  const pick = (...names) => names.map((name) => all[name]);
  const node = make(
    "form",
    { class: "pdx-controls", "aria-label": "Settings" },
    group(
      "Network and attack",
      "A weak attack stops as soon as the network is fooled, a strong one goes on.",
      pick("classifier", "attack", "eps", "steps"),
    ),
    group(
      "Deflection",
      "Pixels take the value of a neighbour in the window.",
      pick("deflections", "window", "reading"),
    ),
    group(
      "Map",
      "Spares pixels where the network looks.",
      pick("activation", "combine", "k"),
    ),
    group(
      "Denoising",
      "Smooths what attack and deflections left.",
      pick("denoiser", "sigma", "mode", "sigma_scale"),
    ),
    group("Draws", "Deflections are drawn at random.", pick("runs", "seed")),
  );
  node.addEventListener("submit", (event) => event.preventDefault());
  const set = (settings, classes) => {
    all.k.inputs[0].max = Math.min(10, classes);
    for (const control of Object.values(all)) control.set(settings);
    const made = settings.attack === "igsm" || settings.attack === "fgsm";
    const off = {
      eps: !made,
      steps: settings.attack !== "igsm",
      combine: settings.activation !== "rcam",
      k: settings.activation !== "rcam",
      activation: settings.deflections === 0,
      sigma: !offer.with_sigma.includes(settings.denoiser),
      mode: settings.denoiser !== "wavelet",
      sigma_scale: settings.denoiser !== "wavelet",
    };
    for (const [name, disabled] of Object.entries(off)) {
      for (const input of all[name].inputs) input.disabled = disabled;
      all[name].node.classList.toggle("pdx-off", disabled);
    }
  };
  return { node, set };
}

// The row of pictures to choose from, and the way to bring one's own.
function makeShelf(view, offer) {
  const name = view.id("image");
  const rows = new Map();
  const list = make("div", { class: "pdx-thumbs", role: "radiogroup", "aria-label": "Picture" });
  const megabytes = Math.round(offer.upload_limit / 1e6);
  const file = make("input", {
    type: "file", id: view.id("upload"), accept: "image/*", class: "pdx-hidden",
  });
  file.addEventListener("change", async () => {
    const [chosen] = file.files;
    if (chosen && chosen.size > offer.upload_limit) {
      const size = (chosen.size / 1e6).toFixed(1);
      view.complain(`${chosen.name}: expected at most ${megabytes} MB, got ${size} MB`);
    } else if (chosen) {
      view.upload(chosen.name, await chosen.arrayBuffer());
    }
    file.value = "";
  });
  const upload = make(
    "label",
    { class: "pdx-upload", for: file.id },
    "Your picture",
    make("small", {}, `at most ${megabytes} MB`),
  );
  const node = make("div", { class: "pdx-shelf" }, list, file, upload);
  const entry = (image, i) => {
    const id = `${name}-${i}`;
    const input = make("input", { type: "radio", name, id, value: image.name, class: "pdx-hidden" });
    input.addEventListener("change", () => view.ask({ image: image.name }, true));
    const address = URL.createObjectURL(blob(image.picture));
    const picture = make("img", { src: address, alt: `${image.title} ${i + 1}`, title: image.title });
    return { node: make("span", {}, input, make("label", { for: id }, picture)), input, address };
  };
  let shown = "";
  const set = (images, current) => {
    const key = images.map((image) => image.name).join("\n");
    if (key !== shown) {
      for (const row of rows.values()) URL.revokeObjectURL(row.address);
      rows.clear();
      images.forEach((image, i) => rows.set(image.name, entry(image, i)));
      list.replaceChildren(...[...rows.values()].map((row) => row.node));
      shown = key;
    }
    for (const [image, row] of rows) row.input.checked = image === current;
  };
  const clear = () => rows.forEach((row) => URL.revokeObjectURL(row.address));
  return { node, set, clear };
}

// The six pictures, and the lens that shows the same place in each of them.
function makePictures(offer) {
  const panels = {};
  const node = make("div", {
    class: "pdx-pictures",
    role: "group",
    tabindex: 0,
    "aria-label": "Six pictures. Move over one, or use the arrow keys, to magnify the same place in all of them; Escape ends it.",
  });
  for (const [name, title] of PICTURES) {
    const canvas = make("canvas", { role: "img", "aria-label": title });
    const lens = make("canvas", { class: "pdx-lens", "aria-hidden": "true", hidden: true });
    const note = make("span", { class: "pdx-note" });
    const factor = name === "attack" || name === "left" ? ` × ${offer.magnified}` : "";
    const caption = make("figcaption", {}, make("b", {}, title + factor), note);
    const stage = make("div", { class: "pdx-stage" }, canvas, lens);
    const bars = make("ol", { class: "pdx-bars" });
    const hasBars = name === "clean" || name === "adversary" || name === "defended";
    node.append(make("figure", {}, caption, stage, ...(hasBars ? [bars] : [])));
    panels[name] = { canvas, lens, note, bars, stage, title, bytes: null };
  }

  let place = null;
  const paint = () => {
    for (const panel of Object.values(panels)) paintLens(panel, place);
  };
  const move = (event) => {
    const stage = event.target.closest(".pdx-stage");
    if (!stage) return leave();
    const box = stage.getBoundingClientRect();
    place = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    requestAnimationFrame(paint);
  };
  const leave = () => {
    place = null;
    requestAnimationFrame(paint);
  };
  const steer = (event) => {
    const way = {
      ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
    }[event.key];
    if (event.key === "Escape") return leave();
    if (!way) return;
    event.preventDefault();
    const step = event.shiftKey ? 0.1 : 0.02;
    const from = place ?? [0.5, 0.5];
    place = from.map((at, i) => Math.min(1, Math.max(0, at + way[i] * step)));
    requestAnimationFrame(paint);
  };
  node.addEventListener("pointermove", move);
  node.addEventListener("pointerleave", leave);
  node.addEventListener("keydown", steer);
  node.addEventListener("blur", leave);

  const decode = async (bytes) => {
    const ready = {};
    await Promise.all(
      Object.entries(bytes).map(async ([name, packed]) => {
        if (packed && packed.byteLength && packed !== panels[name].bytes) {
          ready[name] = await createImageBitmap(blob(packed));
        }
      }),
    );
    return ready;
  };
  const draw = (ready, bytes, shown) => {
    for (const [name, panel] of Object.entries(panels)) {
      if (ready[name]) {
        panel.canvas.width = ready[name].width;
        panel.canvas.height = ready[name].height;
        panel.canvas.getContext("2d").drawImage(ready[name], 0, 0);
        panel.bytes = bytes[name];
        ready[name].close();
      }
      panel.note.textContent = shown.notes[name];
      panel.note.title = shown.notes[name];
      const best = shown.top[name]?.[0];
      const seen = best ? `: the network sees ${best.name} ${best.p.toFixed(2)}` : "";
      panel.canvas.setAttribute("aria-label", `${panel.title}${seen}. ${shown.notes[name]}`);
      if (best) setBars(panel.bars, shown.top[name]);
    }
    paint();
  };
  const asPng = (name, then) => panels[name].canvas.toBlob(then, "image/png");
  return { node, decode, draw, asPng };
}

function paintLens(panel, place) {
  const { lens, canvas } = panel;
  const box = canvas.getBoundingClientRect();
  lens.hidden = !place || !box.width || !panel.bytes;
  if (lens.hidden) return;
  const side = Math.round(LENS.share * box.width);
  const scale = window.devicePixelRatio || 1;
  lens.width = lens.height = Math.round(side * scale);
  lens.style.width = lens.style.height = `${side}px`;
  lens.style.left = `${place[0] * box.width - side / 2}px`;
  lens.style.top = `${place[1] * box.height - side / 2}px`;
  const cut = LENS.pixels;
  const context = lens.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(
    canvas,
    place[0] * canvas.width - cut / 2, place[1] * canvas.height - cut / 2, cut, cut,
    0, 0, lens.width, lens.height,
  );
}

function mark(role) {
  const words = { true: "true class: ", attack: "the attack's class: " }[role] ?? "";
  return make(
    "span",
    { class: `pdx-mark pdx-${role}` },
    make("span", { class: "pdx-hidden" }, words),
  );
}

function setBars(list, top) {
  while (list.children.length > top.length) list.lastChild.remove();
  while (list.children.length < top.length) {
    list.append(
      make("li", {}, make("span", { class: "pdx-name" }), make("span", { class: "pdx-bar" }, make("i")), make("span", { class: "pdx-p" })),
    );
  }
  top.forEach(({ name, p, role }, i) => {
    const [label, bar, number] = list.children[i].children;
    label.replaceChildren(mark(role), name);
    label.title = name;
    bar.firstChild.className = `pdx-${role}`;
    bar.firstChild.style.width = `${100 * p}%`;
    number.textContent = p.toFixed(2);
  });
}

// The line in words, and how far each step brings the true class back.
function makeHeadline() {
  const line = make("p", { class: "pdx-line" });
  const verdict = make("p", { class: "pdx-verdict" });
  const path = make("ol", {});
  const whose = make("span", {});
  const steps = make("div", { class: "pdx-path" }, whose, path);
  const bar = make("div", {
    class: "pdx-progress", role: "progressbar", "aria-label": "Computing", hidden: true,
  }, make("i"));
  const what = make("span", { class: "pdx-what", hidden: true });
  const error = make("p", { class: "pdx-error", role: "alert", hidden: true });
  const spoken = make("p", { class: "pdx-hidden", role: "status" });
  const node = make(
    "div", { class: "pdx-headline" }, bar, make("div", { class: "pdx-words" }, line, verdict, what, error), steps, spoken,
  );
  const set = (shown) => {
    const { before, after } = shown;
    line.replaceChildren(
      make("span", { class: "pdx-seen" }, mark(before.role), `${before.name} ${before.p.toFixed(2)}`),
      make("span", { class: "pdx-arrow" }, " → "),
      make("span", { class: "pdx-seen" }, mark(after.role), `${after.name} ${after.p.toFixed(2)}`),
      make("small", {}, ` in ${shown.milliseconds.toFixed(0)} ms`),
    );
    verdict.textContent = shown.verdict;
    whose.textContent = `${shown.true}, step by step`;
    path.replaceChildren(...shown.steps.map((step) => stepNode(step, shown)));
    if (shown.final) spoken.textContent = `${shown.sentence}. ${shown.verdict}`;
  };
  const setBusy = (busy) => {
    bar.hidden = what.hidden = !busy.what;
    if (!busy.what) return;
    what.textContent = busy.total ? `${busy.what}: ${busy.done} of ${busy.total}` : `${busy.what} …`;
    bar.classList.toggle("pdx-unknown", !busy.total);
    bar.firstChild.style.width = busy.total ? `${(100 * busy.done) / busy.total}%` : "30%";
    if (busy.total) {
      bar.setAttribute("aria-valuemax", busy.total);
      bar.setAttribute("aria-valuenow", busy.done);
    } else {
      bar.removeAttribute("aria-valuenow");
    }
  };
  const setError = (text) => {
    error.hidden = !text;
    error.textContent = text ?? "";
  };
  return { node, set, setBusy, setError };
}

function stepNode(step, shown) {
  const share = (role, p) => make("i", { class: `pdx-${role}`, style: `width:${100 * p}%` });
  const words = [`${shown.true} ${step.true.toFixed(2)}`];
  if (shown.attacked) words.push(`${shown.attacked} ${step.attack.toFixed(2)}`);
  return make(
    "li",
    {},
    make("span", { class: "pdx-step" }, step.name),
    make("span", { class: "pdx-bar pdx-stacked", title: words.join(", ") }, share("true", step.true), share("attack", step.attack)),
    make("span", { class: "pdx-p" }, step.true.toFixed(2), make("span", { class: "pdx-hidden" }, ` ${words.join(", ")}`)),
  );
}

// The last settings with what they gave.
function makeHistory(view) {
  const list = make("ol", { class: "pdx-history", "aria-label": "Last results" });
  const rows = new Map();
  const row = (entry) => {
    const address = URL.createObjectURL(blob(entry.picture));
    const button = make(
      "button",
      { type: "button" },
      make("img", { src: address, alt: "" }),
      make("span", {}, make("b", {}, entry.sentence.replace("->", "→").replaceAll("_", " ")), make("small", {}, entry.summary)),
    );
    button.addEventListener("click", () => view.ask(entry.settings, true));
    return { node: make("li", {}, button), button, address };
  };
  const set = (history, settings) => {
    const keys = history.map((entry) => JSON.stringify(entry.settings));
    for (const [key, old] of rows) {
      if (!keys.includes(key)) {
        URL.revokeObjectURL(old.address);
        old.node.remove();
        rows.delete(key);
      }
    }
    history.forEach((entry, i) => {
      if (!rows.has(keys[i])) {
        rows.set(keys[i], row(entry));
        list.prepend(rows.get(keys[i]).node);
      }
      const same = Object.entries(entry.settings).every(([name, value]) => settings[name] === value);
      rows.get(keys[i]).button.setAttribute("aria-current", String(same));
    });
  };
  const clear = () => rows.forEach((old) => URL.revokeObjectURL(old.address));
  return { node: list, set, clear };
}

function makeKeepsakes(view) {
  const code = make("code");
  const said = make("span", { class: "pdx-said", role: "status" });
  const tell = (text) => {
    said.textContent = text;
    setTimeout(() => said.textContent === text && (said.textContent = ""), 4000);
  };
  const button = (text, act) => {
    const node = make("button", { type: "button" }, text);
    node.addEventListener("click", act);
    return node;
  };
  const lines = make("pre", { tabindex: 0, "aria-label": "The code" }, code);
  const node = make(
    "div",
    { class: "pdx-keep" },
    make(
      "div",
      { class: "pdx-buttons" },
      button("Copy as code", async () => {
        tell((await copy(code)) ? "copied" : "select the lines below and copy them");
      }),
      button("Save picture", () => view.savePicture()),
      button("Save settings", () => view.saveSettings()),
      said,
    ),
    make("details", {}, make("summary", {}, "The lines that do the same in a notebook"), lines),
  );
  const set = (text) => {
    code.textContent = text;
  };
  return { node, set };
}

async function copy(code) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    return true;
  } catch {
    // Without the right to the clipboard an older way may be left.
    code.closest("details")?.setAttribute("open", "");
    getSelection().selectAllChildren(code);
    return document.execCommand("copy");
  }
}

// The colours of the host: JupyterLab says on its body whether it is light, a page leaves it open.
function followTheme(root) {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const look = () => {
    const lab = document.body.closest("[data-pdx-page]") ? undefined : document.body.dataset.jpThemeLight;
    root.dataset.theme = (lab === undefined ? dark.matches : lab === "false") ? "dark" : "light";
  };
  const watcher = new MutationObserver(look);
  watcher.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  dark.addEventListener("change", look);
  look();
  return () => {
    watcher.disconnect();
    dark.removeEventListener("change", look);
  };
}

function render({ model, el }) {
  const own = Math.random().toString(36).slice(2);
  const offer = model.get("offer");
  let moves = 0;
  let waiting = null;
  let later = null;

  const view = {
    id: (name) => `pdx-${own}-${name}`,
    // While an answer is on its way, a slider that is being dragged only remembers where it is.
    ask(changes, final) {
      if (!final && waiting) {
        later = { ...later, ...changes };
        return;
      }
      send({ type: "move", settings: { ...later, ...changes }, final });
      later = null;
    },
    upload: (name, content) => send({ type: "upload", name }, [content]),
    complain: (text) => headline.setError(text),
    savePicture() {
      const { name } = model.get("shown");
      pictures.asPng("defended", (png) => save(png, `${name}-defended.png`));
    },
    saveSettings() {
      const { name, sentence, verdict, top, code } = model.get("shown");
      const kept = { settings: model.get("settings"), sentence, verdict, top, code };
      save(blob(JSON.stringify(kept, null, 2), "application/json"), `${name}-settings.json`);
    },
  };

  function send(message, buffers) {
    moves += 1;
    waiting = `${own}-${moves}`;
    root.dataset.asked = waiting;
    model.send({ ...message, id: waiting }, undefined, buffers);
  }

  const shelf = makeShelf(view, offer);
  const headline = makeHeadline();
  const controls = makeControls(view, offer);
  const pictures = makePictures(offer);
  const history = makeHistory(view);
  const keepsakes = makeKeepsakes(view);
  const main = make(
    "div", { class: "pdx-main" }, headline.node, pictures.node,
    make("div", { class: "pdx-foot" }, make("div", {}, make("h3", {}, "Last results"), history.node), keepsakes.node),
  );
  const root = make(
    "section",
    { class: "pdx", "aria-label": "Explorer of pixel deflection", "data-lm-suppress-shortcuts": "true" },
    make(
      "p", { class: "pdx-gone", role: "status" },
      "The explorer has lost its kernel, and the pictures are old ones. Run the notebook from its top to have it back.",
    ),
    shelf.node,
    make("div", { class: "pdx-body" }, controls.node, main),
  );
  for (const [name, color] of Object.entries(offer.colors)) {
    root.style.setProperty(`--pdx-${name}`, color);
  }
  // A notebook would take the keys for its own, and move on to the next cell.
  root.addEventListener("keydown", (event) => event.stopPropagation());
  const forgetTheme = followTheme(root);
  const forgetKernel = whenKernelGoes(model, () => el.classList.add(GONE));

  function answered(id) {
    if (id !== waiting) return;
    waiting = null;
    if (later) view.ask({}, false);
  }

  function settle() {
    const settings = model.get("settings");
    // What is being moved is not moved back under the visitor's hand.
    if (!waiting) controls.set(settings, model.get("shown").classes ?? 10);
    shelf.set(model.get("images"), settings.image);
    history.set(model.get("history"), settings);
  }

  let newest = 0;
  async function show() {
    const shown = model.get("shown");
    const bytes = Object.fromEntries(PICTURES.map(([name]) => [name, model.get(`picture_${name}`)]));
    newest += 1;
    const turn = newest;
    if (!shown.notes) {
      settle();
      return;
    }
    const ready = await pictures.decode(bytes);
    // Pictures that a newer result has overtaken would only flash.
    if (turn !== newest) return;
    pictures.draw(ready, bytes, shown);
    headline.set(shown);
    keepsakes.set(shown.code);
    answered(shown.id);
    settle();
    root.classList.remove("pdx-empty");
    root.dataset.shown = shown.id;
  }

  function complain() {
    const { text, id } = model.get("error");
    headline.setError(text);
    if (!text) return;
    answered(id);
    settle();
    root.dataset.failed = id;
  }

  const busy = () => headline.setBusy(model.get("busy"));
  const listeners = [
    ["change:shown", show], ["change:error", complain], ["change:busy", busy],
    ["change:history", settle], ["change:images", settle],
  ];
  for (const [event, act] of listeners) model.on(event, act);
  root.classList.add("pdx-empty");
  el.append(root);
  show();
  busy();
  complain();

  return () => {
    for (const [event, act] of listeners) model.off(event, act);
    forgetKernel();
    forgetTheme();
    shelf.clear();
    history.clear();
  };
}

export default { render };
