// Where one is: a path after "#", with a query of its own (#/try?prompt=digits). The router's own hook
// puts queries before the "#", where they outlive the page and get lost when a link is copied.
import { useHashLocation as useWhole } from "wouter-preact/use-hash-location";

function navigate(to: string, { replace = false }: { replace?: boolean } = {}): void {
  if (replace) location.replace(`#${to}`);
  else location.hash = to;
}

export function useHashLocation(): [string, typeof navigate] {
  const [whole] = useWhole();
  return [whole.split("?", 1)[0] ?? "/", navigate];
}

useHashLocation.hrefs = (href: string) => `#${href}`;
useHashLocation.searchHook = () => {
  const [whole] = useWhole();
  const start = whole.indexOf("?");
  return start < 0 ? "" : whole.slice(start + 1);
};
