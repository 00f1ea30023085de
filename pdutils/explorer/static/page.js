// The page around the explorer: its connection to the server, and its address.

import face from "./explorer.js";

// Milliseconds without a word of the server, which speaks every 2 s, until it counts as lost.
const SILENCE = 5000;

const KNOWN = "pdutils-explorer-met";

// What the face knows as a model: the state of this visit, told piece by piece.
class Model {
  #state = {};
  #listeners = new Map();
  #send;

  constructor(send) {
    this.#send = send;
  }

  get(name) {
    return this.#state[name];
  }

  on(event, act) {
    this.#listeners.set(event, [...(this.#listeners.get(event) ?? []), act]);
  }

  off(event, act) {
    const others = (this.#listeners.get(event) ?? []).filter((one) => one !== act);
    this.#listeners.set(event, others);
  }

  send(content, _, buffers) {
    this.#send(content, buffers);
  }

  take(news) {
    Object.assign(this.#state, news);
    for (const name of Object.keys(news)) {
      for (const act of this.#listeners.get(`change:${name}`) ?? []) act();
    }
  }
}

// The length of the JSON in 4 bytes, the JSON, and what it holds of bytes.
function unpacked(data) {
  const end = 4 + new DataView(data).getUint32(0);
  const text = new TextDecoder().decode(new Uint8Array(data, 4, end - 4));
  const revive = (_, value) =>
    Array.isArray(value?.bytes) ? new Uint8Array(data.slice(end + value.bytes[0], end + value.bytes[1])) : value;
  return JSON.parse(text, revive);
}

function packed(content, buffer) {
  const head = new TextEncoder().encode(JSON.stringify(content));
  const length = new DataView(new ArrayBuffer(4));
  length.setUint32(0, head.length);
  return new Blob([length, head, buffer]);
}

// The settings in the address: those that are not the package's defaults, and what is looked at.
function toAddress(settings, defaults) {
  const told = Object.keys(defaults).filter(
    (name) => name === "classifier" || name === "image" || settings[name] !== defaults[name],
  );
  return `#${new URLSearchParams(told.map((name) => [name, settings[name]]))}`;
}

function fromAddress(defaults) {
  const settings = {};
  for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
    const kind = typeof defaults?.[name];
    const number = kind !== "string" && text.trim() !== "" && Number.isFinite(Number(text));
    const known = { true: true, false: false };
    settings[name] = kind === "boolean" && text in known ? known[text] : number ? Number(text) : text;
  }
  return settings;
}

// Keep the address in step with what is shown: a step back for each result, but one for a slider
// that is moved on within a moment.
function keepAddress(model, { defaults, start }, ask) {
  let last = { at: 0, settings: null };
  const write = () => {
    const shown = model.get("shown");
    if (!shown.final) return;
    const settings = model.get("settings");
    const address = toAddress(settings, defaults);
    if (address !== location.hash) {
      const changed = Object.keys(defaults).filter((name) => last.settings?.[name] !== settings[name]);
      const soon = Date.now() - last.at < 1500 && changed.length === 1;
      const how = !last.settings || soon ? "replaceState" : "pushState";
      history[how](null, "", address);
      // One can always go back to the first.
      last.at = last.settings ? Date.now() : 0;
    }
    last.settings = settings;
  };
  model.on("change:shown", write);
  addEventListener("popstate", () => {
    if (toAddress(model.get("settings"), defaults) === location.hash) return;
    const told = fromAddress(defaults);
    ask(Object.keys(told).length ? { ...defaults, ...told } : start, true);
  });
}

function main() {
  const loading = document.getElementById("loading");
  const place = document.getElementById("explorer");
  let socket;
  let heard;
  let hooks;
  let rendered = false;
  let lost = false;
  let isNew = false;

  const model = new Model((content, buffers) => {
    if (socket.readyState !== WebSocket.OPEN) return;
    socket.send(buffers?.length ? packed(content, buffers[0]) : JSON.stringify(content));
  });
  model.page = {
    newcomer: !remembered(),
    met: () => remember(),
    link: () => location.href,
    begin: (given) => {
      hooks = given;
      keepAddress(model, model.get("offer"), hooks.ask);
    },
  };

  function fail(sentence) {
    lost = true;
    if (hooks) {
      hooks.gone(sentence, "Connect again", connect);
      return;
    }
    const again = document.createElement("button");
    again.textContent = "Connect again";
    again.addEventListener("click", () => location.reload());
    loading.replaceChildren(sentence, " ", again);
  }

  function connect() {
    heard = Date.now();
    isNew = true;
    const own = new WebSocket(`${location.protocol.replace("http", "ws")}//${location.host}/visit`);
    socket = own;
    own.binaryType = "arraybuffer";
    own.addEventListener("message", ({ data }) => {
      if (own !== socket) return;
      heard = Date.now();
      const news = unpacked(data);
      if (news.offer) {
        const settings = fromAddress(news.offer.defaults);
        own.send(JSON.stringify({ type: "hello", settings }));
      }
      // After a new connection the old pictures stay grey until there are others.
      const isThere = news.shown?.notes || news.error?.text;
      if (lost && (!isNew || isThere)) {
        lost = false;
        hooks?.back();
      }
      model.take(news);
      isNew &&= !isThere;
      if (!rendered) {
        rendered = true;
        face.render({ model, el: place });
        loading.remove();
      }
    });
    own.addEventListener("close", ({ reason }) => {
      if (own !== socket) return;
      fail(reason || "The connection to the server is lost, and what is shown is an old result.");
    });
  }

  setInterval(() => {
    if (lost || Date.now() - heard < SILENCE) return;
    fail("The server does not answer, and what is shown is an old result.");
  }, 500);
  // A file that is dropped beside the explorer would take the page's place.
  for (const event of ["dragover", "drop"]) addEventListener(event, (e) => e.preventDefault());
  showSite();
  connect();
}

function showSite() {
  const { site } = document.body.dataset;
  const link = document.getElementById("site");
  if (site) {
    link.href = site;
    link.hidden = false;
  } else {
    document.getElementById("explain").textContent = "The notebooks explain each step.";
  }
}

function remembered() {
  try {
    return localStorage.getItem(KNOWN) !== null;
  } catch {
    return false;
  }
}

function remember() {
  try {
    localStorage.setItem(KNOWN, "1");
  } catch {
    // A browser that keeps nothing shows it again.
  }
}

main();
