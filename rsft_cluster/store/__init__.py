"""Where artefacts live: disks, NFS and object stores behind one `Store`, and the files of models beside it."""

from rsft_cluster.config.uris import join_uri, parse_uri
from rsft_cluster.store.filesystem import open_uri
from rsft_cluster.store.folders import localise, upload_folder
from rsft_cluster.store.store import Store

__all__ = ["Store", "join_uri", "localise", "open_uri", "parse_uri", "upload_folder"]
