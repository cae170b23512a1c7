"""Parts that all exports share: the winner, its weights, the output folder and the record of the export."""
