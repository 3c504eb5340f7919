"""The methods that the paper compares SeMOPO with: a file each."""
