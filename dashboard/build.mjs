// Bundles src/ into ../service/static/: two pages, and in assets/ what they load. Assets are named
// after their content, so that browsers can cache them forever, and are compressed once, here.
import { context, build } from "esbuild";
import { mkdir, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const here = fileURLToPath(new URL(".", import.meta.url));
const out = join(here, "../service/static");
const assets = join(out, "assets");
const PAGES = { "index.html": "main", "docs.html": "docs" };
const COMPRESSED = /\.(js|css|svg|html)$/;

const options = {
  absWorkingDir: here,
  entryPoints: { main: "src/main.tsx", docs: "src/docs.ts", icon: "src/icon.svg" },
  outdir: assets,
  entryNames: "[name]-[hash]",
  chunkNames: "[name]-[hash]",
  assetNames: "[name]-[hash]",
  loader: { ".svg": "copy" },
  bundle: true,
  splitting: true,
  format: "esm",
  target: ["es2022"],
  minify: true,
  legalComments: "eof",
  metafile: true,
  logLevel: "warning",
  plugins: [{ name: "pages", setup: (b) => b.onEnd(writePages) }],
};

/** Write the pages with the names that the assets got, then compress everything. */
async function writePages({ errors, metafile }) {
  if (errors.length > 0) return;
  const made = Object.entries(metafile.outputs);
  const named = (entry) => made.find(([, o]) => o.entryPoint === `src/${entry}`);
  const url = (path) => `/assets/${basename(path)}`;
  const icon = made.find(([path]) => basename(path).startsWith("icon-"));
  for (const [page, entry] of Object.entries(PAGES)) {
    const [script, { cssBundle }] = named(`${entry}.ts`) ?? named(`${entry}.tsx`);
    const template = await readFile(join(here, "src", page), "utf8");
    const html = template
      .replace("%SCRIPT%", url(script))
      .replace("%STYLE%", url(cssBundle))
      .replace("%ICON%", url(icon[0]));
    await writeFile(join(out, page), html);
  }
  const kept = new Set(made.map(([path]) => basename(path)));
  for (const name of await readdir(assets)) {
    if (!kept.has(name)) await rm(join(assets, name));
  }
  for (const file of [
    ...Object.keys(PAGES).map((p) => join(out, p)),
    ...[...kept].map((n) => join(assets, n)),
  ]) {
    if (COMPRESSED.test(file))
      await writeFile(`${file}.gz`, gzipSync(await readFile(file), { level: 9 }));
  }
}

await mkdir(assets, { recursive: true });
if (process.argv.includes("--watch")) {
  const watching = await context(options);
  await watching.watch();
} else {
  await build(options);
}
