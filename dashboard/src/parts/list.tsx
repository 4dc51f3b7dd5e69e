// Lists that load page by page.
import type { ComponentChildren } from "preact";
import { useRef } from "preact/hooks";
import { Shown, useResource, type Resource } from "./resource";

const PAGE = 50; // objects; the service returns at most 100 at once

interface Page<T> {
  data: T[];
  next?: string | null;
}

export interface Listed<T> {
  items: T[];
  hasMore: boolean;
}

export interface List<T> extends Resource<Listed<T>> {
  /** Load one more page. */
  more: () => void;
}

/** The pages loaded so far, refreshed like any other resource. */
export function useList<T>(
  load: (query: { limit: number; after: string | null }, signal: AbortSignal) => Promise<Page<T>>,
  inputs: readonly unknown[],
  everySeconds?: number | ((value: Listed<T> | undefined) => number | undefined),
): List<T> {
  const wanted = useRef(1);
  const resource = useResource(
    async (signal) => {
      const items: T[] = [];
      let after: string | null = null;
      for (let n = 0; n < wanted.current; n++) {
        const page: Page<T> = await load({ limit: PAGE, after }, signal);
        items.push(...page.data);
        after = page.next ?? null;
        if (after === null) break;
      }
      return { items, hasMore: after !== null };
    },
    inputs,
    everySeconds,
  );
  const more = () => {
    wanted.current += 1;
    resource.reload();
  };
  return { ...resource, more };
}

interface Props<T> {
  of: List<T>;
  empty: ComponentChildren;
  children: (items: T[]) => ComponentChildren;
}

/** The list, or `empty`, with a button that loads more. */
export function ShownList<T>({ of, empty, children }: Props<T>) {
  return (
    <Shown of={of}>
      {({ items, hasMore }) => (
        <>
          {items.length === 0 ? <p class="empty">{empty}</p> : children(items)}
          {hasMore && (
            <p class="more">
              <button class="quiet" onClick={of.more}>
                Load more
              </button>
            </p>
          )}
        </>
      )}
    </Shown>
  );
}

/** The first few rows of a long table, and a button that shows all of them. */
export function ShowAll({
  total,
  shown,
  onAll,
}: {
  total: number;
  shown: number;
  onAll: () => void;
}) {
  if (total <= shown) return null;
  return (
    <p class="more">
      <button class="quiet" onClick={onAll}>
        Show all {total}
      </button>
    </p>
  );
}
