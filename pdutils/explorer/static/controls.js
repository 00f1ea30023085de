// What the visitor works with: controls, pictures to choose from, files to bring.

// Whose word it is that a class is the right one.
const TRUTH = {
  known: "true class",
  first: "the network's own first answer",
  chosen: "chosen class",
};

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

// What an option does, in a sentence under its control; `more` is any number but those named.
const MEANS = {
  reading: {
    blog: "Each channel draws its own place, three to a deflection; draws the map rejects count, but do nothing.",
    repo: "Each channel draws its own place; each single write counts as a deflection, rejected draws do not.",
    paper: "The whole pixel takes one neighbour; exactly so many places, drawn in proportion to 1 − map.",
  },
  combine: {
    paper: "The sum of the maps, the most probable class's halved, the next one's quartered, and so on.",
    geometric: "The k-th root of the product of the maps: hot only where all of them are.",
    repo: "Begins with 1.2 times the last map, then takes means with the next, up to the first.",
  },
  mode: {
    soft: "What is larger than the threshold is kept, but shrunk by the threshold as well.",
    hard: "What is larger than the threshold is kept as it is, and the rest is gone.",
  },
  sigma_scale: {
    channel: "Each channel is stretched to [0, 1] first, and sigma is noise there: scikit-image until 0.15.",
    rgb: "Sigma is noise in RGB in [0, 1], so a photo's brightness is smoothed less: scikit-image since 0.16.",
  },
  runs: {
    1: "One run, of one draw: another seed may well end in another answer.",
    more: "Each run draws anew; the answer is the mean over them, the picture the first one's.",
  },
};

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

// The sentence that says what a control is set to, if there is one: the nodes that are its own
// (none or one), the attribute that ties it to the control, and what changes it.
function meaning(view, key) {
  if (!MEANS[key]) return { nodes: [], tie: {}, tell: () => {} };
  const id = view.id(`${key}-means`);
  const node = make("p", { class: "pdx-means", id });
  const tell = (value) => {
    node.textContent = MEANS[key][value] ?? MEANS[key].more ?? "";
  };
  return { nodes: [node], tie: { "aria-describedby": id }, tell };
}

// One control: its label, its input, and how a setting goes in and out.
function slider(view, key, text, { low, high: most, step, digits = 0, live = true, unit = "" }) {
  const id = view.id(key);
  const means = meaning(view, key);
  // The most may follow from what is shown.
  const high = typeof most === "function" ? most : () => most;
  const input = make("input", {
    type: "range", id, min: low, max: high(), step, name: key, ...means.tie,
  });
  const output = make("output", { for: id });
  const tell = (value) => {
    output.textContent = value.toFixed(digits) + unit;
    means.tell(value);
  };
  input.addEventListener("input", () => {
    tell(Number(input.value));
    if (live) view.ask({ [key]: Number(input.value) }, false);
  });
  input.addEventListener("change", () => view.ask({ [key]: Number(input.value) }, true));
  const node = make(
    "div",
    { class: "pdx-slider" },
    make("label", { for: id }, text),
    output,
    input,
    ...means.nodes,
  );
  // A link or a file may name what lies beyond the slider or between its steps.
  const set = (settings) => {
    const value = settings[key];
    const steps = (value - low) / step;
    input.max = Math.max(high(), value);
    input.step = Math.abs(steps - Math.round(steps)) < 1e-6 ? step : digits ? "any" : 1;
    input.value = value;
    tell(value);
    if (digits && input.step === "any") output.textContent = String(Number(value.toPrecision(6)));
  };
  return { node, inputs: [input], set };
}

function select(view, key, text, options, { read, write } = {}) {
  const id = view.id(key);
  const means = meaning(view, key);
  const input = make("select", { id, name: key, ...means.tie });
  for (const [value, words] of Object.entries(options)) {
    input.append(make("option", { value }, words));
  }
  input.addEventListener("change", () => {
    means.tell(input.value);
    view.ask(write ? write(input.value) : { [key]: input.value }, true);
  });
  const label = make("label", { for: id }, text);
  const node = make("div", { class: "pdx-select" }, label, input, ...means.nodes);
  const set = (settings) => {
    input.value = read ? read(settings) : settings[key];
    means.tell(input.value);
  };
  return { node, inputs: [input], set };
}

function choice(view, key, text, options) {
  const group = view.id(key);
  const means = meaning(view, key);
  const inputs = Object.entries(options).map(([value]) =>
    make("input", { type: "radio", name: group, value, id: `${group}-${value}` }),
  );
  const labels = Object.entries(options).map(([value, words]) =>
    make("label", { for: `${group}-${value}` }, words),
  );
  for (const input of inputs) {
    input.addEventListener("change", () => {
      means.tell(input.value);
      view.ask({ [key]: input.value }, true);
    });
  }
  const label = make("span", { id: `${group}-label` }, text);
  const pairs = inputs.flatMap((input, i) => [input, labels[i]]);
  const set = (settings) => {
    for (const input of inputs) input.checked = input.value === settings[key];
    means.tell(settings[key]);
  };
  const row = make(
    "div",
    { class: "pdx-switch", role: "radiogroup", "aria-labelledby": `${group}-label`, ...means.tie },
    ...pairs,
  );
  const node = make("div", { class: "pdx-select" }, label, row, ...means.nodes);
  return { node, inputs, set };
}

// A field of text. `read` gives the setting that a text means, or undefined for one that means
// none: then `expected` is said, and the text is what it was.
function field(view, key, attributes, { read, expected }) {
  const input = make("input", {
    type: "text", id: view.id(key), name: key, autocomplete: "off", spellcheck: "false", ...attributes,
  });
  let kept = "";
  let typing = false;
  const set = (value) => {
    kept = String(value);
    // What is being written is not written over.
    if (!typing) input.value = kept;
  };
  input.addEventListener("input", () => {
    typing = true;
  });
  input.addEventListener("change", () => {
    typing = false;
    const text = input.value.trim();
    const value = read(text);
    set(value ?? kept);
    if (value === undefined) view.complain(`${expected()}, got ${text || "nothing"}`);
    else view.ask({ [key]: value }, true);
  });
  return { input, set, kept: () => kept };
}

function seed(view, most) {
  const { input, set, kept } = field(view, "seed", { inputmode: "numeric" }, {
    read: (text) => (/^\d+$/.test(text) && Number(text) <= most ? Number(text) : undefined),
    expected: () => `seed: expected a whole number from 0 to ${most}`,
  });
  const again = make("button", { type: "button", class: "pdx-quiet" }, "New draw");
  again.addEventListener("click", () => {
    set((Number(kept()) + 1) % (most + 1));
    view.ask({ seed: Number(kept()) }, true);
  });
  const label = make("label", { for: input.id }, "Seed");
  const node = make("div", { class: "pdx-seed" }, label, input, again);
  return { node, inputs: [input], set: (settings) => set(settings.seed) };
}

// What a visitor's own picture shows; only the visitor knows.
function ownClass(view) {
  let classes = [];
  const list = make("datalist", { id: view.id("classes") });
  const hint = make(
    "p", { class: "pdx-means", id: view.id("label-means") },
    "Left empty, the network's own first answer is taken as the truth.",
  );
  const { input, set } = field(
    view,
    "label",
    { list: list.id, "aria-describedby": hint.id },
    {
      read: (text) =>
        text ? classes.find((name) => name.toLowerCase() === text.toLowerCase()) : "",
      expected: () => `class of your picture: expected one of ${classes.length} classes, or nothing`,
    },
  );
  const label = make("label", { for: input.id }, "Class of your picture");
  const node = make("div", { class: "pdx-field" }, label, input, list, hint);
  const take = (settings, known) => {
    if (known.classes !== classes) {
      classes = known.classes;
      list.replaceChildren(...classes.map((value) => make("option", { value })));
    }
    set((settings.label ?? "").replaceAll("_", " "));
    input.placeholder = known.own ? "nobody said" : "for your own pictures";
  };
  return { node, inputs: [input], set: take };
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
  let fewest = 10;
  const all = {
    classifier: select(view, "classifier", "Network", networks),
    label: ownClass(view),
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
    k: slider(view, "k", "Classes in R-CAM, k", { low: 1, high: () => fewest, step: 1 }),
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
      pick("classifier", "label", "attack", "eps", "steps"),
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
  // `known`: how many classes the network has, which, and whether the picture is the visitor's own.
  const set = (settings, known) => {
    fewest = Math.min(10, known.count);
    for (const control of Object.values(all)) control.set(settings, known);
    const made = settings.attack === "igsm" || settings.attack === "fgsm";
    const off = {
      label: !known.own,
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

const megabytes = (bytes, digits) => `${(bytes / 1e6).toFixed(digits)} MB`;

// Take a file that was chosen or dropped: a picture, or settings that were saved here.
async function receive(view, offer, files) {
  const expected = "expected one picture, or one file of settings that was saved here";
  if (files.length !== 1) {
    view.complain(`${expected}, got ${files.length ? `${files.length} files` : "no file"}`);
    return;
  }
  const [{ name, size, type }] = files;
  const most = offer.upload_limit;
  const isSettings = /json$/i.test(type || name);
  try {
    if (size > most) {
      view.complain(`${name}: expected at most ${megabytes(most, 0)}, got ${megabytes(size, 1)}`);
    } else if (isSettings) {
      const settings = settingsIn(await files[0].text());
      if (settings) view.ask(settings, true);
      else view.complain(`${name}: ${expected}, got other JSON`);
    } else if (type && !type.startsWith("image/")) {
      view.complain(`${name}: ${expected}, got ${type}`);
    } else {
      view.upload(name, await files[0].arrayBuffer());
    }
  } catch {
    view.complain(`${name}: ${expected}, got ${isSettings ? "no JSON" : "what cannot be read"}`);
  }
}

function settingsIn(text) {
  const found = JSON.parse(text)?.settings;
  return found && typeof found === "object" && !Array.isArray(found) ? chosen(found) : null;
}

// Of all settings those that are the visitor's: a file of weights is the server's to name.
function chosen({ weights: _, ...settings }) {
  return settings;
}

// Have files dropped anywhere on a node, which says so while they are above it.
function takeDrops(node, take) {
  const over = (is) => node.classList.toggle("pdx-over", is);
  const listeners = {
    dragover: () => over(true),
    dragleave: (event) => node.contains(event.relatedTarget) || over(false),
    drop: (event) => {
      over(false);
      take([...event.dataTransfer.files]);
    },
  };
  for (const [name, act] of Object.entries(listeners)) {
    node.addEventListener(name, (event) => {
      // A word that is dragged into a field is the field's.
      if (event.target.matches?.("input") && !event.dataTransfer.types.includes("Files")) return;
      event.preventDefault();
      event.stopPropagation();
      act(event);
    });
  }
}

// The row of pictures to choose from, and the way to bring one's own.
function makeShelf(view, offer) {
  const name = view.id("image");
  const rows = new Map();
  const list = make("div", { class: "pdx-thumbs", role: "radiogroup", "aria-label": "Picture" });
  const file = make("input", {
    type: "file", id: view.id("upload"), accept: "image/*,application/json,.json", class: "pdx-hidden",
  });
  file.addEventListener("change", async () => {
    await receive(view, offer, [...file.files]);
    file.value = "";
  });
  const upload = make(
    "label",
    { class: "pdx-upload", for: file.id },
    "Your picture or settings",
    make("small", {}, `at most ${megabytes(offer.upload_limit, 0)}, or drop it here`),
  );
  const reset = make("button", { type: "button", class: "pdx-reset" }, "Begin again");
  reset.addEventListener("click", () => view.beginAgain());
  const node = make("div", { class: "pdx-shelf" }, list, file, upload, reset);
  const entry = (image, i) => {
    const id = `${name}-${i}`;
    const input = make("input", { type: "radio", name, id, value: image.name, class: "pdx-hidden" });
    input.addEventListener("change", () => view.ask({ image: image.name }, true));
    const address = URL.createObjectURL(blob(image.picture));
    const picture = make("img", {
      src: address, alt: `${image.title} ${i + 1}`, title: image.title, draggable: "false",
    });
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
