"""A sweep file to trials, a champion, a report and an export. The only room that knows Ray and Optuna."""
