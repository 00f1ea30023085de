// The explorer's face. It computes nothing: it asks for settings and shows what comes back.
// kernel.js and controls.js stand before it.
//
// On a page of its own the model has a `page`: whether this is a first visit (`newcomer`), what to
// call when the tour was read (`met`), the address of what is shown (`link`), and what takes the
// face's ends when it is drawn (`begin`).

const PICTURES = [
  ["clean", "Clean"],
  ["adversary", "Adversary"],
  ["defended", "Defended"],
  ["deflected", "Deflected pixels"],
  ["attack", "What the attack added"],
  ["left", "What is left"],
];

const LOST =
  "The explorer has lost its kernel, and the pictures are old ones. Run the notebook from its top to have it back.";

// Milliseconds without a word after which what is shown is called old.
const PATIENCE = 5000;

// The classes of a network that named none.
const NONE = [];

const LENS = { share: 0.46, pixels: 26 };

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
    const note = make("p", { class: "pdx-note" });
    const factor = name === "attack" || name === "left" ? `\u00a0×\u00a0${offer.magnified}` : "";
    const caption = make("figcaption", {}, make("b", {}, title + factor), note);
    const stage = make("div", { class: "pdx-stage" }, canvas, lens);
    const bars = make("ol", { class: "pdx-bars" });
    const hasBars = name === "clean" || name === "adversary" || name === "defended";
    node.append(make("figure", {}, caption, stage, ...(hasBars ? [bars] : [])));
    panels[name] = { canvas, lens, note, bars, stage, title, bytes: null };
  }

  const used = makeUsed();
  panels.clean.note.after(used.node);

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
      const best = shown.top[name]?.[0];
      const seen = best ? `: the network sees ${best.name} ${best.p.toFixed(2)}` : "";
      panel.canvas.setAttribute("aria-label", `${panel.title}${seen}. ${shown.notes[name]}`);
      if (best) setBars(panel.bars, shown.top[name], shown.truth);
    }
    paint();
  };
  const asPng = (name, then) => panels[name].canvas.toBlob(then, "image/png");
  return { node, decode, draw, asPng, setUsed: used.set, clear: used.clear };
}

// What was cut off a picture of another shape, in words and as the whole picture, small.
function makeUsed() {
  const words = make("span");
  const picture = make("img", { alt: "" });
  const node = make("p", { class: "pdx-used", hidden: true }, picture, words);
  let packed = null;
  const clear = () => URL.revokeObjectURL(picture.src);
  const set = (text, bytes) => {
    node.hidden = !text;
    words.textContent = text ?? "";
    picture.hidden = !bytes?.byteLength;
    if (bytes === packed) return;
    packed = bytes;
    clear();
    if (!picture.hidden) picture.src = URL.createObjectURL(blob(bytes));
  };
  return { node, set, clear };
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

function mark(role, truth) {
  const words = { true: TRUTH[truth ?? "known"], attack: "the attack's class" }[role];
  return make(
    "span",
    { class: `pdx-mark pdx-${role}` },
    make("span", { class: "pdx-hidden" }, words ? `${words}: ` : ""),
  );
}

function setBars(list, top, truth) {
  while (list.children.length > top.length) list.lastChild.remove();
  while (list.children.length < top.length) {
    list.append(
      make("li", {}, make("span", { class: "pdx-name" }), make("span", { class: "pdx-bar" }, make("i")), make("span", { class: "pdx-p" })),
    );
  }
  top.forEach(({ name, p, role }, i) => {
    const [label, bar, number] = list.children[i].children;
    label.replaceChildren(mark(role, truth), name);
    label.title = name;
    bar.firstChild.className = `pdx-${role}`;
    bar.firstChild.style.width = `${100 * p}%`;
    number.textContent = p.toFixed(2);
  });
}

// What stands in place of the numbers while the pictures are old ones.
function makeNotice() {
  const words = make("span", {}, LOST);
  const button = make("button", { type: "button", hidden: true });
  let act = null;
  button.addEventListener("click", () => act());
  const node = make("p", { class: "pdx-notice", role: "status" }, words, " ", button);
  const set = (sentence = LOST, text = "", then = null) => {
    words.textContent = sentence;
    button.textContent = text;
    button.hidden = !text;
    act = then;
  };
  return { node, set };
}

// The line in words, and how far each step brings the true class back.
function makeHeadline() {
  const notice = makeNotice();
  const line = make("p", { class: "pdx-line" });
  const verdict = make("p", { class: "pdx-verdict" });
  const truth = make("p", { class: "pdx-truth", hidden: true });
  const path = make("ol", {});
  const whose = make("span", {});
  const steps = make("div", { class: "pdx-path" }, whose, path);
  const bar = make("div", {
    class: "pdx-progress", role: "progressbar", "aria-label": "Computing", hidden: true,
  }, make("i"));
  const what = make("span", { class: "pdx-what", hidden: true });
  const error = make("p", { class: "pdx-error", role: "alert", hidden: true });
  const spoken = make("p", { class: "pdx-hidden", role: "status" });
  const words = make("div", { class: "pdx-words" }, bar, notice.node, line, verdict, what, error);
  const node = make("div", { class: "pdx-headline" }, words, truth, steps, spoken);
  const set = (shown, own) => {
    const { before, after } = shown;
    line.replaceChildren(
      make("span", { class: "pdx-seen" }, mark(before.role, shown.truth), `${before.name} ${before.p.toFixed(2)}`),
      make("span", { class: "pdx-arrow" }, " → "),
      make("span", { class: "pdx-seen" }, mark(after.role, shown.truth), `${after.name} ${after.p.toFixed(2)}`),
      make("small", {}, ` in ${shown.milliseconds.toFixed(0)} ms`),
    );
    verdict.textContent = shown.verdict;
    truth.textContent = whoSaid(shown, own);
    truth.hidden = !truth.textContent;
    const unsure = (shown.truth ?? "known") !== "known";
    whose.textContent = `${shown.true}${unsure ? ` (${TRUTH[shown.truth]})` : ""}, step by step`;
    path.replaceChildren(...shown.steps.map((step) => stepNode(step, shown)));
    if (shown.final) spoken.textContent = `${shown.sentence}. ${shown.verdict} ${truth.textContent}`;
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
  return { node, set, setBusy, setError, notice };
}

// Whose answer is taken as the truth, and what else the network could have said.
function whoSaid(shown, own) {
  const first = `Nobody said what this shows: ${TRUTH.first}, ${shown.true}, is taken as the truth.`;
  return [shown.truth === "first" && first, own && shown.knows].filter(Boolean).join(" ");
}

function stepNode(step, shown) {
  const share = (role, p) => {
    const node = make("i", { class: `pdx-${role}` });
    node.style.width = `${100 * p}%`;
    return node;
  };
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

function makeKeepsakes(view, page) {
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
  const link = make("input", {
    type: "text", class: "pdx-link", readonly: true, "aria-label": "The link", hidden: true,
  });
  const copyLink = button("Copy link", async () => {
    link.value = page.link();
    link.hidden = false;
    tell((await copy(link.value, () => link.select())) ? "copied" : "select the link and copy it");
  });
  const lines = make("pre", { tabindex: 0, "aria-label": "The code" }, code);
  const node = make(
    "div",
    { class: "pdx-keep" },
    make(
      "div",
      { class: "pdx-buttons" },
      button("Copy as code", async () => {
        const select = () => {
          code.closest("details").open = true;
          getSelection().selectAllChildren(code);
        };
        tell((await copy(code.textContent, select)) ? "copied" : "select the lines below and copy them");
      }),
      ...(page ? [copyLink] : []),
      button("Save picture", () => view.savePicture()),
      button("Save settings", () => view.saveSettings()),
      said,
    ),
    link,
    make("details", {}, make("summary", {}, "The lines that do the same in a notebook"), lines),
  );
  const set = (text) => {
    code.textContent = text;
  };
  return { node, set };
}

async function copy(text, select) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Without the right to the clipboard, as over plain http, an older way may be left.
    select();
    return document.execCommand("copy");
  }
}

// Three sentences for a first visit, and a question to go on with.
function makeTour(page) {
  const question = make("p", { class: "pdx-question" });
  const done = make("button", { type: "button" }, "Got it");
  const node = make(
    "div",
    { class: "pdx-tour", role: "region", "aria-label": "For your first visit" },
    make(
      "ul",
      {},
      make("li", {}, "You see one picture clean, attacked and defended, and under each what the network takes it for."),
      make("li", {}, "Move a slider or choose another word: all pictures and numbers follow."),
      make("li", {}, "Look at the line on top: what the network saw before the defence, and what it sees after it."),
    ),
    question,
    done,
  );
  const end = () => {
    node.remove();
    page.met();
  };
  done.addEventListener("click", end);
  node.addEventListener("keydown", (event) => event.key === "Escape" && end());
  const set = (shown) => {
    if (!question.textContent) question.textContent = aQuestion(shown);
  };
  return { node, set };
}

function aQuestion({ true: right, attacked, after }) {
  if (!attacked) return "Which attack makes the network see something else, and which single knob undoes it?";
  const so = `The attack turns ${right} into ${attacked}.`;
  if (after.role === "true") {
    return `${so} Which knob has brought the ${right} back? And does it still, against a strong attack?`;
  }
  return `${so} Which single knob brings the ${right} back? And does it still, against a strong attack?`;
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
  const { page } = model;
  let moves = 0;
  let waiting = null;
  let later = null;
  // What was asked for since the last answer.
  let asked = {};

  const view = {
    id: (name) => `pdx-${own}-${name}`,
    // While an answer is on its way, a slider that is being dragged only remembers where it is.
    ask(changes, final) {
      if (!final && waiting) {
        later = { ...later, ...changes };
        return;
      }
      const settings = { ...later, ...changes };
      asked = { ...asked, ...settings };
      later = null;
      send({ type: "move", settings, final });
    },
    askAgain: () => view.ask({ ...chosen(model.get("settings")), ...asked, ...later }, true),
    beginAgain: () => view.ask(offer.start, true),
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
    // A complaint is of what was done last, and that is this.
    headline.setError("");
    listen();
    model.send({ ...message, id: waiting }, undefined, buffers);
  }

  const shelf = makeShelf(view, offer);
  const headline = makeHeadline();
  const controls = makeControls(view, offer);
  const pictures = makePictures(offer);
  const history = makeHistory(view);
  const keepsakes = makeKeepsakes(view, page);
  const tour = page?.newcomer ? makeTour(page) : null;
  const main = make(
    "div", { class: "pdx-main" }, headline.node, pictures.node,
    make("div", { class: "pdx-foot" }, make("div", {}, make("h3", {}, "Last results"), history.node), keepsakes.node),
  );
  const root = make(
    "section",
    { class: "pdx", "aria-label": "Explorer of pixel deflection", "data-lm-suppress-shortcuts": "true" },
    ...(tour ? [tour.node] : []),
    shelf.node,
    make("div", { class: "pdx-body" }, controls.node, main),
  );
  for (const [name, color] of Object.entries(offer.colors)) {
    root.style.setProperty(`--pdx-${name}`, color);
  }
  // A notebook would take the keys for its own, and move on to the next cell.
  root.addEventListener("keydown", (event) => event.stopPropagation());
  takeDrops(root, (files) => root.dataset.grey !== "cut" && receive(view, offer, files));
  const forgetTheme = followTheme(root);
  const forgetKernel = whenKernelGoes(model, () => {
    el.classList.add(GONE);
    grey("cut");
  });

  // "old": no answer comes; "cut": none can come, so that there is nothing to move; "": neither.
  function grey(how, ...words) {
    root.dataset.grey = how;
    pictures.node.inert = Boolean(how);
    headline.notice.set(...words);
  }

  let silence = null;
  function listen() {
    clearTimeout(silence);
    if (!waiting || model.get("busy").what || root.dataset.grey === "cut") return;
    silence = setTimeout(() => {
      const sentence = "No answer for 5 seconds: what is shown is older than the sliders.";
      grey("old", sentence, "Ask again", view.askAgain);
    }, PATIENCE);
  }

  function heard() {
    if (root.dataset.grey === "old") grey("");
    listen();
  }

  function answered(id) {
    if (id !== waiting) return;
    waiting = null;
    asked = {};
    if (later) view.ask({}, false);
  }

  const isOwn = () => {
    const { image } = model.get("settings");
    return model.get("images").some(({ name, own: theirs }) => theirs && name === image);
  };

  function settle() {
    const settings = model.get("settings");
    const classes = model.get("classes") ?? NONE;
    const count = model.get("shown").classes ?? 10;
    // What is being moved is not moved back under the visitor's hand.
    if (!waiting) controls.set(settings, { count, classes, own: isOwn() });
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
    pictures.setUsed(shown.cut, model.get("picture_whole"));
    headline.set(shown, isOwn());
    keepsakes.set(shown.code);
    tour?.set(shown);
    answered(shown.id);
    heard();
    settle();
    root.classList.remove("pdx-empty");
    root.dataset.shown = shown.id;
  }

  function complain() {
    const { text, id } = model.get("error");
    headline.setError(text);
    if (!text) return;
    answered(id);
    heard();
    settle();
    root.dataset.failed = id;
  }

  function busy() {
    headline.setBusy(model.get("busy"));
    heard();
  }

  const listeners = [
    ["change:shown", show], ["change:error", complain], ["change:busy", busy],
    ["change:history", settle], ["change:images", settle], ["change:classes", settle],
  ];
  for (const [event, act] of listeners) model.on(event, act);
  root.classList.add("pdx-empty");
  el.append(root);
  show();
  busy();
  complain();
  page?.begin({
    ask: view.ask,
    gone(...words) {
      clearTimeout(silence);
      grey("cut", ...words);
    },
    back() {
      grey("");
      // What was asked for meanwhile may never have come there.
      if (waiting) view.askAgain();
    },
  });

  return () => {
    for (const [event, act] of listeners) model.off(event, act);
    clearTimeout(silence);
    forgetKernel();
    forgetTheme();
    shelf.clear();
    history.clear();
    pictures.clear();
  };
}

export default { render };
