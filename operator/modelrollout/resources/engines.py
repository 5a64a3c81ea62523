"""Engines that TensorRT builds for a model: how a server gets those that were built before, and
keeps what it has built.

To build takes minutes, and an engine is code: it runs with the rights of the server. So the volume
shows each server the folder of its own ModelDeployment alone, by uid. Below it engines lie by what
they depend on: artifact and settings (the loader names both in config.pbtxt), kind of GPU, version
of TensorRT. ONNX Runtime writes an engine in place and loads no model whose engine is damaged, so
no server writes to the volume while it builds: each has a copy on its own disk, and hands a folder
on, in one rename, once its model is ready.
"""

from __future__ import annotations

from modelrollout.api import names
from modelrollout.api.v1alpha1 import Serving
from modelrollout.contract.common import ENGINES, REPOSITORY
from modelrollout.resources.common import Object

VOLUME = "engines"
SHARED = "/engines"
# Starts tritonserver with the engines that fit. Whatever fails here costs time, not the start.
#   kept     this pod's own engines; .whole: they were all there when the model was ready
#   shared   where they lie on the volume, if there is one
# An engine that came from the volume, and with which the model did not get ready, is not tried
# again: it is built, and replaces the other.
_START = """\
model=@MODEL@ number=@NUMBER@
kept=$(sed -n 's|^ *value: "\\(@ENGINES@/[0-9a-f]*-[0-9]*\\)"$|\\1|p' @REPOSITORY@/$model/config.pbtxt)
is_ready() {
  timeout 10 bash -p -c 'exec 3<>/dev/tcp/127.0.0.1/@PORT@ && printf "GET $0 HTTP/1.0\\r\\n\\r\\n" >&3 \\
    && read -r answer <&3 && [[ $answer == *" 200 "* ]]' \\
    "/v2/models/$model/versions/$number/ready" 2> /dev/null
}
hand_on() {
  until is_ready; do sleep 2; done
  touch "$kept/.whole"
  [ -n "$shared" ] && [ -z "$copied" ] && ls "$kept"/*.engine > /dev/null 2>&1 || return
  [ ! -e "$shared" ] || [ -e "$kept.tried" ] || return
  find @SHARED@ -mindepth 1 -maxdepth 1 -name '.new-*' -mmin +1440 -exec rm -rf {} +
  find @SHARED@ -mindepth 3 -maxdepth 3 -mtime +90 -exec rm -rf {} +
  new=$(mktemp -d @SHARED@/.new-XXXXXX) && chmod 775 "$new" && mkdir -p "${shared%/*}" \\
    && cp "$kept"/* "$new" && { [ ! -e "$shared" ] || mv -T "$shared" "$new/.old"; } \\
    && mv -T "$new" "$shared"
  rm -rf "$new" "$shared/.old"
}
if [ -n "$kept" ]; then
  shared= copied=
  if [ -d @SHARED@ ] && [ ! -e "$kept/.whole" ]; then
    gpu=$(nvidia-smi -L 2> /dev/null | sed -n 's/ *(UUID.*//p' | tr -cs 'A-Za-z0-9.' - | cut -c -200)
    library=$(ls /usr/lib/*-linux-gnu/libnvinfer.so.*.*.* 2> /dev/null | tail -n 1)
    version=$(printf %s "${TRT_VERSION:-${library##*.so.}}" | tr -cs 'A-Za-z0-9.' -)
    if [ -n "$gpu" ] && [ -n "$version" ]; then
      shared=@SHARED@/${kept##*/}/$gpu/$version
    else
      echo "engines: the kind of GPU or the version of TensorRT is not known, so none are kept" >&2
    fi
  fi
  if [ ! -e "$kept/.whole" ]; then
    rm -rf "$kept"
    mkdir -p "$kept"
    if [ -n "$shared" ] && [ -d "$shared" ] && [ ! -e "$kept.tried" ]; then
      touch "$kept.tried" "$shared"
      if cp "$shared"/* "$kept"; then copied=yes; else rm -rf "$kept"; mkdir -p "$kept"; fi
    fi
  fi
  # A server that tuning loads and unloads hands nothing on.
  case " $* " in *" --model-control-mode=explicit "*) ;; *) hand_on & ;; esac
fi
exec tritonserver "$@"
"""


def command(deployment: str, number: int) -> list[str]:
    """The command of a server whose model TensorRT computes; its flags follow as arguments."""
    script = _START
    for word, value in (
        ("MODEL", deployment),
        ("NUMBER", str(number)),
        ("ENGINES", ENGINES),
        ("SHARED", SHARED),
        ("REPOSITORY", REPOSITORY),
        ("PORT", str(names.PORT_HTTP)),
    ):
        script = script.replace(f"@{word}@", value)
    return ["sh", "-c", script, "tritonserver"]


def mounts(serving: Serving, owner_uid: str) -> list[Object]:
    """The folder of the ModelDeployment with this uid."""
    if _claim(serving) is None:
        return []
    return [{"name": VOLUME, "mountPath": SHARED, "subPath": owner_uid}]


def volumes(serving: Serving) -> list[Object]:
    """The volume with engines of all ModelDeployments that name the claim."""
    claim = _claim(serving)
    return [] if claim is None else [{"name": VOLUME, "persistentVolumeClaim": {"claimName": claim}}]


def _claim(serving: Serving) -> str | None:
    accelerator = serving.accelerator
    if accelerator is None or accelerator.tensor_rt.cache is None:
        return None
    return accelerator.tensor_rt.cache.persistent_volume_claim.claim_name
