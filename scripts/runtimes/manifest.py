"""Prints a tree, one line a name: python3 manifest.py ROOT SINCE [LEFT OUT]...

Name, type, mode, owner, size, content, link target, device, xattrs, hard link group and modification time,
so that two trees that print alike are alike. A time at or after SINCE is `now`: it is of the run and not of
the story. Only what python3-minimal has is imported, since it runs inside the containers as well.
"""
import binascii
import hashlib
import os
import stat
import sys

root = os.fsencode(sys.argv[1]).rstrip(b"/")
since = int(sys.argv[2]) * 10**9
left_out = {os.fsencode(path) for path in sys.argv[3:]}
links = {}


def shown(raw):
    return raw.decode("latin-1").encode("unicode_escape").decode().replace(" ", "\\x20")


def content(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:24]


def xattrs(path):
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        return "xattrs=" + error.strerror.replace(" ", "-")
    found = []
    for name in sorted(names):
        # The security module's labels are the machine's; those of an overlay are its own matter.
        if name == "security.selinux" or ".overlay." in name or ".fuseoverlayfs." in name:
            continue
        value = os.getxattr(path, name, follow_symlinks=False)
        found.append(name + "=" + binascii.hexlify(value).decode())
    return " ".join(found)


def line(path, name):
    info = os.lstat(path)
    kind = stat.S_IFMT(info.st_mode)
    words = [shown(name or b"/"), "%06o" % info.st_mode, "%d:%d" % (info.st_uid, info.st_gid)]
    if kind == stat.S_IFREG:
        words += [str(info.st_size), content(path)]
    elif kind == stat.S_IFLNK:
        words.append("-> " + shown(os.readlink(path)))
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        words.append("%d,%d" % (os.major(info.st_rdev), os.minor(info.st_rdev)))
    if kind != stat.S_IFDIR and info.st_nlink > 1:
        first = links.setdefault((info.st_dev, info.st_ino), name)
        words.append("links=%d of %s" % (info.st_nlink, shown(first)))
    words.append(xattrs(path))
    words.append("now" if info.st_mtime_ns >= since else "%d.%09d" % divmod(info.st_mtime_ns, 10**9))
    print(" ".join(word for word in words if word))
    return kind == stat.S_IFDIR


def walk(name):
    if name in left_out:
        return
    path = root + name or b"/"
    if line(path, name):
        for entry in sorted(os.listdir(path)):
            walk(name + b"/" + entry)


walk(b"")
