// Before anything is drawn: what shows only with a script, and the chosen colours.
document.documentElement.classList.add("script");
try {
  const theme = localStorage.getItem("pixel-deflection-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Some browsers keep nothing for pages from the file system: the system's colours then.
}
