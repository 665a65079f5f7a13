// The bind page follows its QR code: it shows what the phone does, and who was bound in the end.
"use strict";

const line = document.getElementById("follow");
const renew = document.getElementById("renew");

function follow() {
  const events = new EventSource("/bind/status" + location.search);
  events.addEventListener("status", (event) => {
    const { status } = JSON.parse(event.data);
    if (status === "bound") {
      events.close();
      location.reload();
    } else if (status === "expired") {
      events.close();
      document.querySelector(".qr").hidden = true;
      line.textContent = line.dataset.expired;
      renew.hidden = false;
    } else {
      line.textContent = line.dataset[status];
    }
  });
  // A connection that breaks comes back by itself; one that is refused does not.
  events.addEventListener("error", () => {
    if (events.readyState === EventSource.CLOSED) {
      setTimeout(() => location.reload(), 5000);
    }
  });
}

follow();
