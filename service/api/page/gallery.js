// Pictures that the visitor keeps, in this browser's IndexedDB: name, thumbnail, embedding, and the model of the embedding.

const STORE = "pictures";

function open() {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open("vim-gallery", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: "id", autoIncrement: true });
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => reject(opening.error);
  });
}

async function inStore(mode, work) {
  const database = await open();
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(STORE, mode);
    const asked = work(transaction.objectStore(STORE));
    transaction.oncomplete = () => resolve(asked.result);
    transaction.onerror = () => reject(transaction.error);
  });
}

export const add = (picture) => inStore("readwrite", (store) => store.add(picture));
export const remove = (id) => inStore("readwrite", (store) => store.delete(id));
export const empty = () => inStore("readwrite", (store) => store.clear());
export const all = () => inStore("readonly", (store) => store.getAll());

/** Cosine of two vectors of unit length. */
export function cosine(a, b) {
  return a.reduce((sum, value, i) => sum + value * b[i], 0);
}

/** Pictures embedded by the same model, nearest first; without a vector, newest first. */
export function ordered(pictures, vector, fingerprint) {
  const ours = pictures.filter((one) => one.fingerprint === fingerprint);
  if (!vector) return ours.reverse().map((one) => ({ ...one, cosine: null }));
  const measured = ours.map((one) => ({ ...one, cosine: cosine(vector, one.vector) }));
  return measured.sort((a, b) => b.cosine - a.cosine);
}
