// The sentence under controls that have lost their kernel. Of a restart ipywidgets itself tells, by
// a class on what has lost it; of a kernel that is shut down, or changed for another, it does not.
const GONE = "jupyter-widgets-disconnected";

const SENTENCE =
  "These controls have lost their kernel, and the picture is an old one. " +
  "Run the notebook from its top to have them back.";

function render({ model, el }) {
  const said = document.createElement("p");
  said.className = "pdutils-gone";
  said.setAttribute("role", "status");
  said.textContent = SENTENCE;
  el.append(said);
  const end = model.widget_manager?.kernel?.disposed;
  const mark = () => el.closest(".pdutils-sliders")?.classList.add(GONE);
  end?.connect(mark);
  return () => end?.disconnect(mark);
}

export default { render };
