"""``method="auto"``: candidates, their cross-fitting, the choice and the verdict."""
