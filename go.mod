module xlft

go 1.26
