"""What the scripts share: figures, pages, output folders, studies."""
