// Reads targets from a TUF repository with an unmodified tuf-js: node tuf_js_client.cjs BASE_URL FOLDER TARGET...
// FOLDER/metadata holds the shipped root.json; prints {target: SHA-256 of what was downloaded, or null}.
const { createHash } = require('node:crypto');
const { mkdirSync, readFileSync } = require('node:fs');
const { join } = require('node:path');
const { Updater } = require('tuf-js');

async function main([base, folder, ...names]) {
  mkdirSync(join(folder, 'targets'), { recursive: true });
  const updater = new Updater({
    metadataDir: join(folder, 'metadata'),
    metadataBaseUrl: `${base}/metadata`,
    targetDir: join(folder, 'targets'),
    targetBaseUrl: `${base}/targets`,
    config: { fetchRetry: 0 },
  });
  await updater.refresh();
  const found = {};
  for (const [place, name] of names.entries()) {
    const target = await updater.getTargetInfo(name);
    found[name] = null;
    if (target) {
      const file = await updater.downloadTarget(target, join(folder, 'targets', String(place)));
      found[name] = createHash('sha256').update(readFileSync(file)).digest('hex');
    }
  }
  console.log(JSON.stringify(found));
}

main(process.argv.slice(2)).catch((error) => {
  console.error(`${error.name}: ${error.message}`);
  process.exitCode = 1;
});
