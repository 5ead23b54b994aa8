"""Train plans again and measure them: refit, confirm, reproduce."""
