// Light, dark or the system's theme; this device remembers the choice.
import { effect, signal } from "@preact/signals";

const NAME = "sharpzo.theme";
const THEMES = ["auto", "light", "dark"] as const;
type Theme = (typeof THEMES)[number];
const SIGNS: Record<Theme, string> = { auto: "◐", light: "☀", dark: "☾" };

const stored = localStorage.getItem(NAME);
const theme = signal<Theme>(THEMES.find((known) => known === stored) ?? "auto");
const system = matchMedia("(prefers-color-scheme: dark)");

/** Counts changes of the theme, for drawings that must be made again. */
export const appearance = signal(0);

effect(() => {
  document.documentElement.dataset["theme"] = theme.value;
  localStorage.setItem(NAME, theme.value);
  appearance.value = appearance.peek() + 1;
});
system.addEventListener("change", () => (appearance.value += 1));

/** The current colour of a custom property of the style sheet, for a canvas. */
export function colour(property: string): string {
  const probe = document.createElement("span");
  probe.style.color = `var(${property})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

export function ThemeButton() {
  const next = THEMES[(THEMES.indexOf(theme.value) + 1) % THEMES.length] ?? "auto";
  const label = `Theme: ${theme.value}. Change to ${next}`;
  return (
    <button class="plain" title={label} aria-label={label} onClick={() => (theme.value = next)}>
      {SIGNS[theme.value]}
    </button>
  );
}
