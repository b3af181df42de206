"""What several tests share: networks, recipes, runs and files to try things on."""
