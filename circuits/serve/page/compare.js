// The two choosers: a choice loads the page with it, so that the address always names what is shown.

const form = document.getElementById("choice");

form?.addEventListener("change", () => form.requestSubmit());
document.getElementById("swap")?.addEventListener("click", () => {
  const { left, right } = form.elements;
  [left.value, right.value] = [right.value, left.value];
  form.requestSubmit();
});
