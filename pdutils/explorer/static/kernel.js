// What ipywidgets calls a widget of its own that has lost its kernel in a restart.
const GONE = "jupyter-widgets-disconnected";

// Call `act` when the kernel that a widget came from is no more: restarted, shut down, or changed
// for another. What is returned ends the watch.
function whenKernelGoes(model, act) {
  const kernel = model.widget_manager?.kernel;
  const told = (_, status) => {
    if (["restarting", "autorestarting", "dead"].includes(status)) act();
  };
  kernel?.statusChanged?.connect(told);
  kernel?.disposed?.connect(act);
  return () => {
    kernel?.statusChanged?.disconnect(told);
    kernel?.disposed?.disconnect(act);
  };
}

