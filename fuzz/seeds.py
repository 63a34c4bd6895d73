#!/usr/bin/env python3
"""Makes the seeds that the fuzzers begin with: seeds/TARGET/NAME, and seeds/TARGET.dict with words that they try.

The seeds are kept with the source; run this after a change of what a target reads.
"""

import io
import pathlib
import struct
import tarfile

here = pathlib.Path(__file__).parent / "seeds"


def seed(target, name, data):
    path = here / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


# ---- layer: whole tars, without the empty blocks of their ends ----------------------------------


def member(name, kind=tarfile.REGTYPE, data=b"", **more):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = kind, len(data), 0o644
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


def tar(*members, form=tarfile.USTAR_FORMAT):
    out = io.BytesIO()
    for info, data in members:
        out.write(info.tobuf(form, "utf-8", "surrogateescape"))
        out.write(data + bytes(-len(data) % 512))
    return out.getvalue()


def raw(name, kind, size=0, data=b"", magic=b"ustar\x0000", at=()):
    """A header with fields of one's own; the fuzzer puts the sum right."""
    block = bytearray(512)
    block[0 : len(name)] = name
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124:136], block[136:148] = b"%011o\0" % size, b"%011o\0" % 1
    block[156:157], block[257:265] = kind, magic
    for offset, value in at:
        block[offset : offset + len(value)] = value
    sum_ = sum(block) + 8 * 32
    block[148:156] = b"%06o\0 " % sum_
    return bytes(block) + data + bytes(-len(data) % 512)


def record(key, value):
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return str(length).encode() + b" " + key + b"=" + value + b"\n"


def pax(*records):
    data = b"".join(record(*each) for each in records)
    return raw(b"p", b"x", len(data), data)


GNU = b"ustar  \0"
acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in [(1, 7, 2**32 - 1), (4, 5, 2**32 - 1), (32, 0, 2**32 - 1)])

seed("layer", "kinds", tar(
    member("./", tarfile.DIRTYPE, mode=0o755), member("d/", tarfile.DIRTYPE, mode=0o2755), member("d/f", data=b"data", mtime=7),
    member("d/l", tarfile.SYMTYPE, linkname="f"), member("h", tarfile.LNKTYPE, linkname="d/f")))
seed("layer", "special", tar(
    member("p", tarfile.FIFOTYPE), member("c", tarfile.CHRTYPE, devmajor=1, devminor=3), member("w", tarfile.CHRTYPE)))
seed("layer", "marks", tar(
    member("a/.wh.b"), member("a/.wh..wh..opq"), member(".wh..wh.plnk"), member("a/b/", tarfile.DIRTYPE), member(".wh.c/")))
seed("layer", "outside", tar(
    member("up", tarfile.SYMTYPE, linkname="../.."), member("up/secret", data=b"x"), member("../link"), member("h", tarfile.LNKTYPE, linkname="../secret"),
    member("a", tarfile.SYMTYPE, linkname="/dir"), member("a/file")))
seed("layer", "circles", tar(
    member("x", tarfile.SYMTYPE, linkname="y/z"), member("y", tarfile.SYMTYPE, linkname="x"), member("x/f")))
seed("layer", "anew", tar(
    member("a"), member("a/", tarfile.DIRTYPE), member("a/b"), member("a", tarfile.SYMTYPE, linkname="b"), member("./a/../a"), member("a/c")))
seed("layer", "borrowed", tar(member("a", tarfile.LNKTYPE, linkname="below/f"), member("b", tarfile.LNKTYPE, linkname="a"), member("b")))
seed("layer", "pax", pax((b"path", b"p" * 120), (b"mtime", b"-1.5"), (b"uid", b"3000000"), (b"SCHILY.xattr.user.a", b"\0\xff\n"))
     + raw(b"short", b"0"))
seed("layer", "xattrs", pax((b"SCHILY.xattr.system.posix_acl_default", acl), (b"SCHILY.xattr.trusted.overlay.opaque", b"y"))
     + raw(b"d/", b"5") + raw(b"d/f", b"0")
     + pax((b"SCHILY.xattr.security.capability", b"\1\0\0\2" + bytes(16)), (b"SCHILY.xattr.user.overlay.redirect", b"/x")) + raw(b"d/g", b"0"))
seed("layer", "gnu-long", raw(b"L", b"L", 4, b"long", GNU) + raw(b"K", b"K", 6, b"target", GNU) + raw(b"n", b"2", magic=GNU)
     + raw(b"big", b"0", magic=GNU, at=[(108, b"\x80" + bytes(4) + b"\x01\0\0"), (136, b"\xff" * 12)]))
seed("layer", "gnu-sparse", raw(b"s", b"S", 4, b"data", GNU, [(386, b"%011o\0%011o\0" % (4096, 4)), (483, b"%011o\0" % 8192)]))
seed("layer", "pax-sparse", pax((b"GNU.sparse.map", b"0,2,512,2"), (b"GNU.sparse.size", b"600"), (b"GNU.sparse.name", b"s")) + raw(b"x", b"0", 4, b"data")
     + pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9"))
     + raw(b"y", b"0", 514, b"1\n5\n2\n" + bytes(506) + b"ab"))
seed("layer", "global", raw(b"g", b"g", 3, b"any") + raw(b"f", b"7", 1, b"x") + raw(b"old/", b"\0"))

# ---- members and whiteouts: a member a line -----------------------------------------------------

seed("members", "links", "dd\nfd/f\nll\t/d\nfl/g\nhh\tl/f\nlup\t../../secret\nfup\nd../x\n")
seed("members", "order", "fa\nda\nfa/b\nla\tb\nda/c\nhb\tnowhere\nhb/../c\tb\n")
seed("members", "marks", "f.wh.a\nfa\nfd/.wh..wh..opq\ndd\nfd/.wh.e\nld/e\t..\nfd/e/f\n")
seed("members", "special", "pd/p\ncd/c\nhp\td/p\npd\nd./\nd..\n")
seed("members", "circle", "la\tb\nlb\ta\nfa/f\nlc\t.\nfc/c/c/f\n")
seed("whiteouts", "removed", "dd\nfd/a\nfd/b/c\nfe\n=\nfd/.wh.a\nf.wh.e\nfd/.wh.b\ndd/b\n")
seed("whiteouts", "opaque", "fa/b/c\nfa/d\n=\nfa/b/.wh..wh..opq\nfa/b/e\nf.wh..wh..opq\nfx\n")
seed("whiteouts", "own", "fa\n=\nf.wh.a\nfa\nf.wh.d\ndd\nfd\nf.wh.d/x\n")
seed("whiteouts", "names", "f..a\nf.wh\nf...\n=\nf.wh..a\nf.wh...x\nf.wh..wh.plnk\nf.wh.\n")
seed("whiteouts", "replaced", "fa/b/c\n=\nfa/.wh.b\nfa\nda\nfa/../e/./f\n")

# ---- documents: JSON, a zero byte between manifest and configuration ----------------------------

sha = "sha256:" + "1" * 64
oci, docker = "application/vnd.oci.image.", "application/vnd.docker."
layer = f'{{"mediaType":"{oci}layer.v1.tar+gzip","size":9,"digest":"{sha}"}}'
config = f'{{"architecture":"amd64","os":"linux","created":"2020-01-02T03:04:05Z","rootfs":{{"type":"layers","diff_ids":["{sha}"]}},"history":[{{"created_by":"x"}},{{"empty_layer":true}}]}}'
seed("documents", "oci", f'{{"schemaVersion":2,"mediaType":"{oci}manifest.v1+json","config":{{"mediaType":"{oci}config.v1+json","size":2,"digest":"{sha}"}},"layers":[{layer}]}}\0{config}')
seed("documents", "docker", f'{{"schemaVersion":2,"mediaType":"{docker}distribution.manifest.v2+json","config":{{"mediaType":"{docker}container.image.v1+json","size":2,"digest":"{sha}"}},"layers":[]}}\0{{"rootfs":{{}}}}')
seed("documents", "index", f'{{"schemaVersion":2,"manifests":[{{"mediaType":"{oci}manifest.v1+json","size":2,"digest":"{sha}","platform":{{"os":"linux","architecture":"arm64","variant":"v8"}},"annotations":{{"a":"b"}}}},{{"mediaType":"{oci}manifest.v1+json","size":2,"digest":"{sha}","platform":{{"os":"unknown","architecture":"unknown"}}}}]}}')
seed("documents", "schema1", '{"schemaVersion":1,"name":"x","fsLayers":[]}')

# ---- references, options ------------------------------------------------------------------------

for name, text in {
    "short": "debian", "tag": "user/app:1.2_x-y", "host": "127.0.0.1:5000/t/app:1", "docker": "docker://quay.io/x/y__z:t",
    "digest": f"quay.io/x/y@{sha}", "both": f"localhost/a:b@{sha}", "platform": "linux/arm64/v8",
}.items():
    seed("references", name, text)
seed("options", "podman", b"\0lowerdir=/a/l/X:/a/l/Y,upperdir=/u,workdir=/w,,volatile,context=\"a:c1,c2\"\0/m")
seed("options", "maps", b"\0uidmapping=:0:1000:5000,gidmapping=0:1:2:3:4:5,xattr_permissions=2,squash_to_uid=7\0-f\0/m")
seed("options", "mount8", b"\1-o\0rw,dev,suid,lowerdir=a\\:b:c\0-o\0metacopy=on,timeout=1.5,x-systemd.automount")
seed("options", "plain", b"\2mount\0--lower\0/a\0--upper\0/u\0--work\0/w\0--io\0cached\0/m")
seed("options", "own", b"\3lowerdir=/a,redirect_dir=on,index=on,xino=auto,threads=4,fsync=strict")

# ---- xattrs: a value or a name; tree: layers and changes, a line each ---------------------------

seed("xattrs", "origin", b"\0\xfb\x1d\0\x01" + bytes(16) + struct.pack("<II", 12, 7))
seed("xattrs", "origin-any", b"\0\xfb\x21\x02\x81" + bytes(16) + struct.pack("<QI", 12, 7))
seed("xattrs", "redirect", "/a/b c/d")
seed("xattrs", "redirect-up", "/a/../b")
seed("xattrs", "override", "7:8:04755:char-1-3")
seed("xattrs", "acl", acl)
seed("xattrs", "acl-named", struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in [
    (1, 7, 2**32 - 1), (2, 6, 1000), (4, 5, 2**32 - 1), (8, 4, 7), (16, 7, 2**32 - 1), (32, 0, 2**32 - 1)]))
seed("xattrs", "name", "trusted.overlay.overlay.opaque")
seed("xattrs", "name-override", "user.containers.overlay.override_stat")

T = "trusted.overlay."
seed("tree", "merged", "ff\tupper\ndd\n=\nfd/a\tlower\nfg\tlower\nwd/b\n=\nfd/b\tbelow\nfd/c\tbelow\nlk\td/a\n!\nad/a\tmore\nud/c\nvd\te\nfd\tnew\n")
seed("tree", "marks", f"f.wh.a\nf.wh..wh.x\nf.wh.\nfd/.wh..wh..opq\nxe\t{T}opaque\tx\nde\nxe\t{T}opaque\tx\nfe/w\nxe/w\t{T}whiteout\ty\n=\nfa\ta\nfd/x\tx\nfe/w\tw\ndf\nxf\tuser.fuseoverlayfs.opaque\ty\n=\nff/y\ty\n!\nfa\tagain\nrf\nue/w\ndf\n")
seed("tree", "redirects", f"da\nxa\t{T}redirect\t/b/c\n=\ndb/c\nxb/c\t{T}redirect\t/d\ndc\nxc\t{T}redirect\t../outside\nlout\t../outside\nde\nxe\t{T}redirect\t/out\n=\nfd/f\tdeep\nfb/c/g\tg\nlout\t../outside\n!\nva\tz\nvz/f\tf\ndz/n\n")
seed("tree", "metacopies", f"om\nff\t\nxf\t{T}metacopy\t\nfg\nxg\t{T}metacopy\t\nxg\t{T}redirect\t/p\n=\nff\tdata\npp\ncc\nlo\t../outside/secret\nfh\nxh\t{T}metacopy\t\nxh\t{T}redirect\t/c\nfi\nxi\t{T}metacopy\t\nxi\t{T}redirect\t/o\n=\nfi\tx\n!\nmf\t600\naf\tmore\nvg\tk\nah\tx\n")
seed("tree", "index", f"if\tl\nilower1/a\tl\nilower1/c\tp\nff\nxf\t{T}origin\t@outside/secret\nxf\t{T}nlink\tL+3\nx\t{T}impure\ty\nioutside/secret\tf\n=\nfa\tlinked\nhb\ta\nfc\tlinked\nhd/c\tc\n!\naa\tmore\nub\nhc\tz\nac\tmore\n")
seed("tree", "forged", f"=\nff\tx\ndd\n!\nxf\t{T}redirect\t/x\nxd\tuser.overlay.opaque\ty\nxd\tuser.fuseoverlayfs.opaque\ty\nxf\tuser.containers.override_stat\t0:0:04755\nyd\t{T}opaque\nww\nf.wh.f\nvf\t.wh.g\nef\td\n")
seed("tree", "user", "ou\ndd\nxd\tuser.overlay.redirect\t/e\nff\nxf\tuser.overlay.metacopy\t\n=\nfe/x\tx\nff\tf\nxe\ttrusted.overlay.redirect\t/q\n!\nvd\tm\n")
seed("tree", "nofollow", f"onr\n=\ndd\nxd\t{T}redirect\te\n=\nfe/x\tx\n")

words = {
    "xattrs": ["trusted.overlay.", "user.overlay.", "user.fuseoverlayfs.", "user.containers.", "security.fuseoverlayfs.", "overlay.", "override_stat", "override_",
               "\\x00\\xfb", ":char-", ":block-", ":symlink", ":file", "/../", "\\x02\\x00\\x00\\x00"],
    "tree": ["\\x0a=\\x0a", "\\x0a!\\x0a", "\\x0ad", "\\x0af", "\\x0al", "\\x0ax", "\\x0aw", "\\x09trusted.overlay.redirect\\x09", "\\x09trusted.overlay.metacopy\\x09",
             "\\x09trusted.overlay.opaque\\x09y", "\\x09trusted.overlay.opaque\\x09x", "\\x09trusted.overlay.whiteout\\x09y", "\\x09trusted.overlay.origin\\x09@", "\\x09trusted.overlay.nlink\\x09U-1",
             "\\x09trusted.overlay.impure\\x09y", "user.overlay.", "user.fuseoverlayfs.", "../outside", "@outside/secret", "@lower1/", ".wh.", ".wh..wh..opq", "\\x0aom", "\\x0aoun", "\\x0ar"],
    "layer": ["ustar\\x0000", "ustar  \\x00", ".wh.", ".wh..wh..opq", "../", "SCHILY.xattr.", "SCHILY.xattr.system.posix_acl_access=",
              "GNU.sparse.map=", "GNU.sparse.size=", "GNU.sparse.major=1", "GNU.sparse.realsize=", "GNU.sparse.offset=", "path=", "linkpath=", "size=", "uid=", "mtime=-"],
    "members": ["\\x0af", "\\x0ad", "\\x0al", "\\x0ah", "\\x0ap", "\\x0ac", "/.wh.", "/.wh..wh..opq", "/../", "/./", "\\x09/", "\\x09../"],
    "whiteouts": ["\\x0a=\\x0a", "\\x0af", "\\x0ad", ".wh.", ".wh..wh..opq", ".wh..wh.", "/../", "/./", "//"],
    "documents": ["\\\"mediaType\\\":", "\\\"layers\\\":", "\\\"manifests\\\":", "\\\"platform\\\":", "\\\"config\\\":", "\\\"rootfs\\\":", "\\\"diff_ids\\\":", "\\\"history\\\":",
                  "\\\"empty_layer\\\":true", "\\\"annotations\\\":", "\\\"urls\\\":", "\\\"data\\\":", "\\\"artifactType\\\":", "\\\"subject\\\":", sha, f"{oci}layer.v1.tar+zstd", f"{oci}index.v1+json"],
    "references": ["docker.io", "library/", "localhost", ":latest", "@sha256:", "@sha512:", "index.docker.io", "docker://", "[::1]:5000", sha, "linux/", "1" * 64],
    "options": ["lowerdir=", "upperdir=", "workdir=", "uidmapping=", "squash_to_root", "xattr_permissions=", "\\x00-o\\x00", "--io\\x00", "redirect_dir=", "metacopy=",
                "context=\\\"", "\\\\:", "timeout=", "static_nlink", "volatile", "threaded=", "--transport\\x00ring", "max_write=", "fsync="],
}
for target, list_ in words.items():
    (here / f"{target}.dict").write_text("".join(f'"{word}"\n' for word in list_))
