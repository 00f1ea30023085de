// The sentence under controls that have lost their kernel; sliders.css shows it.
// kernel.js stands before it.
const SENTENCE =
  "These controls have lost their kernel, and the picture is an old one. " +
  "Run the notebook from its top to have them back.";

function render({ model, el }) {
  const said = document.createElement("p");
  said.className = "pdutils-gone";
  said.setAttribute("role", "status");
  said.textContent = SENTENCE;
  el.append(said);
  return whenKernelGoes(model, () => el.closest(".pdutils-sliders")?.classList.add(GONE));
}

export default { render };
