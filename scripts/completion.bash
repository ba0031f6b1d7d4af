# bash completion for "xl ft-..." and xlft. The words come from xlft itself.
_xlft_complete() {
	local words=() w cur out
	for w in "${COMP_WORDS[@]:1:COMP_CWORD}"; do # bash takes "mode=event" apart
		if ((${#words[@]})) && [[ $w == = || ${words[-1]} == *= ]]; then words[-1]+=$w; else words+=("$w"); fi
	done
	cur=${words[-1]}
	out=$("${XLFT_BINARY:-/usr/local/sbin/xlft}" __complete "${words[@]}" 2>/dev/null | sed -e '/^:[0-9]*$/d' -e 's/\t.*//')
	mapfile -t COMPREPLY < <(compgen -W "$out" -- "$cur")
	if [[ $cur == *=* ]]; then
		COMPREPLY=("${COMPREPLY[@]#*=}") # bash replaces what follows the "="
	elif [[ ${COMPREPLY[0]-} == *= ]]; then
		compopt -o nospace 2>/dev/null
	fi
}
_xl_ft_complete() {
	case ${COMP_WORDS[1]} in
	ft-*)
		if ((COMP_CWORD == 1)) || [[ ${COMP_WORDS[1]} == ft-* ]]; then
			_xlft_complete
			return
		fi
		;;
	esac
	# All else as Xen's own completion has it, if it is there.
	if declare -F _xl_own >/dev/null; then _xl_own; fi
}
complete -F _xlft_complete xlft
if complete -p xl >/dev/null 2>&1; then
	eval "$(complete -p xl | sed -n 's/.*-F \([^ ]*\).*/_xl_own() { \1 "$@"; }/p')"
fi
complete -F _xl_ft_complete xl
