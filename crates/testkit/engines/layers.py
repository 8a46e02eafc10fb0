"""Writes an OCI archive whose layers change what the layers below have in every way that an archive can say: layers.py OUTPUT NAME"""
import gzip, hashlib, io, json, sys, tarfile

output, name = sys.argv[1:]
out = tarfile.open(output, "w")
TIME = 1600000000


def put(name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    out.addfile(info, io.BytesIO(data))


def blob(data):
    digest = hashlib.sha256(data).hexdigest()
    put("blobs/sha256/" + digest, data)
    return "sha256:" + digest, len(data)


class Layer:
    """An archive, entry by entry. Directories above an entry are in it only if they were put there."""

    def __init__(self):
        self.data = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.data, mode="w", format=tarfile.PAX_FORMAT)

    def add(self, name, type, mode, content=b"", link="", owner=(0, 0), device=(0, 0), attributes={}, time=TIME):
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.linkname, info.mtime = type, mode, link, time
        info.uid, info.gid = owner
        info.devmajor, info.devminor = device
        info.size = len(content)
        info.pax_headers = {"SCHILY.xattr." + key: value for key, value in attributes.items()}
        self.tar.addfile(info, io.BytesIO(content))
        return self

    def dir(self, name, mode=0o755, **more):
        return self.add(name, tarfile.DIRTYPE, mode, **more)

    def file(self, name, content, mode=0o644, **more):
        return self.add(name, tarfile.REGTYPE, mode, content.encode(), **more)

    def link(self, name, to):
        return self.add(name, tarfile.LNKTYPE, 0o644, link=to)

    def symlink(self, name, to):
        return self.add(name, tarfile.SYMTYPE, 0o777, link=to)

    def gone(self, name):
        folder, _, base = name.rpartition("/")
        return self.file((folder + "/" if folder else "") + ".wh." + base, "")

    def opaque(self, name):
        return self.file(name + "/.wh..wh..opq", "")

    def done(self):
        self.tar.close()
        return self.data.getvalue()


base = Layer().dir("./", 0o711, owner=(3, 4)).dir("bin").dir("etc", 0o750, owner=(7, 8)).dir("etc/deep", 0o2770, owner=(9, 10))
base.file("bin/su", "#!", 0o4711, attributes={"security.capability": "\x01\x00\x00\x02\x00 \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"})
base.file("etc/kept", "kept", attributes={"user.a": "b"}).link("etc/again", "etc/kept").symlink("etc/link", "kept")
base.file("etc/deep/stays", "stays").file("etc/deep/goes", "goes")
base.dir("folder").file("folder/a", "a").file("folder/b", "b").dir("folder/sub").file("folder/sub/c", "c")
base.dir("opaque", 0o700).file("opaque/hidden", "hidden").file("becomes-folder", "file").dir("becomes-file").file("becomes-file/x", "x")
base.add("pipe", tarfile.FIFOTYPE, 0o640).add("null", tarfile.CHRTYPE, 0o666, device=(1, 3)).dir("renewed").file("renewed/old", "old")
base.file("large", "0123456789abcdef" * 100000).dir("kept").file("kept/file", "below")
layers = [
    base,
    # The root and directories that are not told stay as they are.
    Layer().gone("etc/deep/goes").file("etc/deep/new", "new", 0o600, owner=(11, 12)).gone("folder"),
    Layer().dir("etc", 0o701, owner=(1, 2)).file("etc/kept", "changed", time=TIME + 0.25).dir("opaque").opaque("opaque").file("opaque/shown", "shown"),
    Layer().gone("becomes-folder").dir("becomes-folder", 0o1777).file("becomes-folder/in", "in").file("becomes-file", "now a file"),
    Layer().dir("folder", 0o711).file("folder/d", "d").link("folder/e", "folder/d").gone("renewed").gone("pipe").gone("null"),
    Layer().dir("renewed", 0o777).file("renewed/new", "new").file("folder/f", "f").gone("large"),
    Layer().file("kept/other", "above").file("etc/deep/stays", "changed", 0o640, attributes={"user.c": "d"}),
    # The root is told again, and a folder as an implied one would look like.
    Layer().dir("./", 0o755).dir("etc/deep", 0o755).file("last", "last"),
]
descriptors, diffs = [], []
for layer in layers:
    plain = layer.done()
    digest, size = blob(gzip.compress(plain, 6, mtime=0))
    diffs.append("sha256:" + hashlib.sha256(plain).hexdigest())
    descriptors.append({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": size})
config, size = blob(json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diffs}}).encode())
descriptor = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": size}
media = "application/vnd.oci.image.manifest.v1+json"
digest, size = blob(json.dumps({"schemaVersion": 2, "mediaType": media, "config": descriptor, "layers": descriptors}).encode())
notes = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": "test"}
put("index.json", json.dumps({"schemaVersion": 2, "manifests": [{"mediaType": media, "digest": digest, "size": size, "annotations": notes}]}).encode())
put("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
out.close()
