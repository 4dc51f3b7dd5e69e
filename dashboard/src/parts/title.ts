// The title of a page, as tabs, bookmarks and the history show it.
import { useEffect } from "preact/hooks";

const SERVICE = "SharpZO";

/** Name the page; undefined until its name is known. Text of a user must be `isolated`. */
export function useTitle(name: string | undefined): void {
  useEffect(() => {
    document.title = name === undefined ? SERVICE : `${name} · ${SERVICE}`;
  }, [name]);
}
