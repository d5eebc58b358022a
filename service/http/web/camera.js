import { $ } from "./elements.js";

let stream = null;
let cameras = [];

/** Whether browsers allow the camera here: on localhost and over HTTPS only. */
export const available = () => Boolean(navigator.mediaDevices?.getUserMedia);

function release() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = $("video").srcObject = null;
  $("shoot").disabled = true;
}

async function watch(video) {
  release();
  $("camera-error").textContent = "";
  try {
    const opened = await navigator.mediaDevices.getUserMedia({ video, audio: false });
    stream = opened;
    if (!$("camera-dialog").open) return release(); // closed while the browser asked
    $("video").srcObject = stream;
    await $("video").play();
    // Browsers hide the number of cameras until the user has allowed one.
    cameras = (await navigator.mediaDevices.enumerateDevices()).filter((each) => each.kind === "videoinput");
    $("other-camera").hidden = cameras.length < 2;
    $("shoot").disabled = false;
  } catch (error) {
    if (!$("camera-dialog").open) return undefined;
    $("camera-error").textContent = error.name === "NotAllowedError"
      ? "The browser blocked this page from using the camera."
      : `The camera is not available: ${error.message}`;
  }
  return undefined;
}

function other() {
  const id = stream?.getVideoTracks()[0]?.getSettings().deviceId;
  const next = (cameras.findIndex((each) => each.deviceId === id) + 1) % cameras.length;
  return watch({ deviceId: { exact: cameras[next].deviceId } });
}

/** Calls `take` with each picture taken, as a file. */
export function install(take) {
  const dialog = $("camera-dialog");
  $("camera").addEventListener("click", () => {
    dialog.showModal();
    watch({ facingMode: "environment", width: { ideal: 1280 } });
  });
  $("other-camera").addEventListener("click", other);
  $("close-camera").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", release);
  $("shoot").addEventListener("click", () => {
    const video = $("video");
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => {
      dialog.close();
      take(new File([blob], "camera.jpg", { type: blob.type }));
    }, "image/jpeg", 0.92);
  });
}
